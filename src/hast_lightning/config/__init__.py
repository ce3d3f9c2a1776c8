"""Typed schemas of the Hydra groups, and the checks of their values.

Every group under ``conf/`` is merged into a dataclass, so an unknown key or a value of the wrong
type is refused while the configuration is composed. Ranges and combinations are checked in
``__post_init__``, which runs when :func:`to_object` turns the composed configuration into
objects: before any network is loaded. Parts are their own schemas (:mod:`hast_lightning.core`).
"""

from hast_lightning.config.building import from_saved, import_parts, register_schemas, to_object
from hast_lightning.config.compare import TABLE_FORMATS
from hast_lightning.config.error_lines import (
    foreign,
    joined_lines,
    one_line,
)
from hast_lightning.config.export import DEFAULT_OPSET, FORMATS, ExportConfig
from hast_lightning.config.folder import config_folder
from hast_lightning.config.model import PROVIDERS, ModelConfig
from hast_lightning.config.quoting import spelled, with_paths_as_texts
from hast_lightning.config.root import Config
from hast_lightning.config.schedule import ScheduleConfig
from hast_lightning.config.surroundings import (
    AUTO,
    FLOAT32,
    CallbacksConfig,
    DataConfig,
    LoggerConfig,
    TrainerConfig,
)
from hast_lightning.config.words import (
    named_modules,
    refuse_typed_recipe,
    register_recipes,
    spelled_modules,
)
from hast_lightning.quantization.settings import QuantizerConfig, refuse_two_ways_of_bits

__all__ = [
    "AUTO",
    "DEFAULT_OPSET",
    "FLOAT32",
    "FORMATS",
    "PROVIDERS",
    "TABLE_FORMATS",
    "CallbacksConfig",
    "Config",
    "DataConfig",
    "ExportConfig",
    "LoggerConfig",
    "ModelConfig",
    "QuantizerConfig",
    "ScheduleConfig",
    "TrainerConfig",
    "config_folder",
    "foreign",
    "from_saved",
    "import_parts",
    "joined_lines",
    "named_modules",
    "one_line",
    "refuse_two_ways_of_bits",
    "refuse_typed_recipe",
    "register_recipes",
    "register_schemas",
    "spelled",
    "spelled_modules",
    "to_object",
    "with_paths_as_texts",
]
