"""Typed schemas of the Hydra groups, and the checks of their values.

Every group under ``conf/`` is merged into one of these dataclasses, so an unknown key or a
value of the wrong type is refused while the configuration is composed. Ranges and
combinations are checked in ``__post_init__``, which runs when :func:`to_object` turns the
composed configuration into objects: before any network is loaded.
"""

from hast_lightning.config.augmentation import (
    AugmentationConfig,
)
from hast_lightning.config.checks import (
    require_choice,
    require_range,
)
from hast_lightning.config.compare import PICTURE_FORMATS, TABLE_FORMATS, CompareConfig
from hast_lightning.config.distillation import (
    KD_REDUCTIONS,
    OPTIMIZERS,
    AlignmentConfig,
    DistillationConfig,
    DistillationTermConfig,
    OptimizerConfig,
    PromotionConfig,
)
from hast_lightning.config.error_lines import joined_lines, one_line
from hast_lightning.config.export import (
    DEFAULT_OPSET,
    FORMATS,
    ExportConfig,
)
from hast_lightning.config.folder import config_folder
from hast_lightning.config.model import (
    PROVIDERS,
    ModelConfig,
)
from hast_lightning.config.quantizer import (
    GRADIENTS,
    MAX_BITS,
    MIN_BITS,
    QUANTIZERS,
    RANGES,
    LayerBitsConfig,
    QuantizerConfig,
    refuse_two_ways_of_bits,
)
from hast_lightning.config.root import (
    COMMANDS,
    STAGES,
    Config,
    register_schemas,
    to_object,
)
from hast_lightning.config.schedule import (
    LEARNING_RATE_POLICIES,
    SCHEDULES,
    LearningRateConfig,
    ScheduleConfig,
)
from hast_lightning.config.surroundings import (
    DATA_SOURCES,
    LOGGERS,
    PRECISIONS,
    CallbacksConfig,
    DataConfig,
    LoggerConfig,
    TrainerConfig,
)
from hast_lightning.config.synthesis import (
    CALIBRATION_SOURCES,
    CONDITIONINGS,
    SOURCES,
    CalibrationConfig,
    GeneratorConfig,
    HardnessConfig,
    ImageBankConfig,
    ImagesConfig,
    SynthesisConfig,
)

__all__ = [
    "CALIBRATION_SOURCES",
    "COMMANDS",
    "CONDITIONINGS",
    "DATA_SOURCES",
    "DEFAULT_OPSET",
    "FORMATS",
    "GRADIENTS",
    "KD_REDUCTIONS",
    "LEARNING_RATE_POLICIES",
    "LOGGERS",
    "MAX_BITS",
    "MIN_BITS",
    "OPTIMIZERS",
    "PICTURE_FORMATS",
    "PRECISIONS",
    "PROVIDERS",
    "QUANTIZERS",
    "RANGES",
    "SCHEDULES",
    "SOURCES",
    "STAGES",
    "TABLE_FORMATS",
    "AlignmentConfig",
    "AugmentationConfig",
    "CalibrationConfig",
    "CallbacksConfig",
    "CompareConfig",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "DistillationTermConfig",
    "ExportConfig",
    "GeneratorConfig",
    "HardnessConfig",
    "ImageBankConfig",
    "ImagesConfig",
    "LayerBitsConfig",
    "LearningRateConfig",
    "LoggerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PromotionConfig",
    "QuantizerConfig",
    "ScheduleConfig",
    "SynthesisConfig",
    "TrainerConfig",
    "config_folder",
    "joined_lines",
    "one_line",
    "refuse_two_ways_of_bits",
    "register_schemas",
    "require_choice",
    "require_range",
    "to_object",
]
