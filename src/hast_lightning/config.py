"""Typed schemas of the Hydra groups, and the checks across their fields.

Every group under ``conf/`` is merged into one of these dataclasses, so an
unknown key or a value of the wrong type is refused while the configuration is
composed. Ranges and combinations are checked in ``__post_init__``, which runs
when :func:`to_object` turns the composed configuration into objects: before
any network is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hast_lightning.errors import ConfigurationError

MIN_BITS, MAX_BITS = 2, 8

PROVIDERS = ("digits", "cifar_resnet", "torchvision")
QUANTIZERS = ("minmax",)
GRADIENTS = ("pass_through", "clipped")
SCHEDULES = ("alternating", "two_stage")
LEARNING_RATE_POLICIES = ("constant", "multistep", "cosine")
SOURCES = ("generator", "image_bank")
CONDITIONINGS = ("embedding", "batch_norm")
CALIBRATION_SOURCES = ("generator", "synthesis")
KD_REDUCTIONS = ("batchmean", "mean")
OPTIMIZERS = ("sgd", "adam", "adamw")
DATA_SOURCES = ("digits", "npz", "cifar10", "imagenet", "none")
LOGGERS = ("csv", "wandb", "tensorboard")
STAGES = ("synthesize", "distill", "evaluate", "report")
PRECISIONS = ("32-true", "bf16-mixed")


def require_choice(key: str, value: str, choices: Collection[str]) -> None:
    """Refuse ``value`` unless it is one of ``choices``."""
    if value not in choices:
        raise ConfigurationError(f"{key}={value!r} is not one of: {', '.join(sorted(choices))}")


def require_range(
    key: str,
    value: float,
    minimum: float,
    maximum: float = float("inf"),
    *,
    open_minimum: bool = False,
) -> None:
    """Refuse ``value`` outside ``[minimum, maximum]`` (``(minimum, maximum]`` if open)."""
    # NaN and infinity are refused whatever the range.
    above = value > minimum if open_minimum else value >= minimum
    if not (above and value <= maximum and math.isfinite(value)):
        lower = f"greater than {minimum:g}" if open_minimum else f"at least {minimum:g}"
        upper = f" and at most {maximum:.10g}" if math.isfinite(maximum) else ""
        upper = upper or (" and finite" if value == maximum else "")
        raise ConfigurationError(f"{key}={value} must be {lower}{upper}")


@dataclass
class ModelConfig:
    """The pretrained network: where it comes from and what it expects as input."""

    provider: str = MISSING
    """``digits`` (bundled), ``cifar_resnet`` (by depth) or ``torchvision`` (any classifier)."""
    name: str = MISSING
    """Name in reports; for torchvision the name of the builder."""
    pretrained: bool = True
    """Load pretrained weights; false keeps the random initialization (for trials without files)."""
    checkpoint: str | None = None
    """Weights to load instead of the provider's own: .safetensors or a torch state dict."""
    depth: int | None = None
    """Depth of a ``cifar_resnet``: 6n+2, e.g. 20, 32, 44, 56."""
    num_classes: int | None = None
    input_size: int | None = None
    """Height and width of the input in pixels; none: the provider's own."""
    mean: list[float] | None = None
    """Per-channel mean that the input was normalized with, for pixels in [0, 1]."""
    std: list[float] | None = None
    taps: list[str] | None = None
    """Name patterns (shell style) of the feature taps; none: found from the network's graph."""

    def __post_init__(self) -> None:
        require_choice("model.provider", self.provider, PROVIDERS)
        if self.provider == "cifar_resnet":
            depth = self.depth or 0
            if depth < 8 or (depth - 2) % 6:
                raise ConfigurationError(
                    f"model.depth={self.depth} must be 6n+2, e.g. 20, 32, 44 or 56"
                )
            if self.pretrained and self.checkpoint is None:
                raise ConfigurationError(
                    f"model.checkpoint is not set: {self.name} has no weights of its own; point "
                    "model.checkpoint at a file, or set model.pretrained=false for random weights"
                )
        if self.num_classes is not None:
            require_range("model.num_classes", self.num_classes, 2)
        if self.input_size is not None:
            require_range("model.input_size", self.input_size, 4)
        if (self.mean is None) != (self.std is None):
            raise ConfigurationError("model.mean and model.std go together: set both or neither")
        for mean in self.mean or ():
            require_range("model.mean", mean, 0, 1)
        for deviation in self.std or ():
            require_range("model.std", deviation, 0, open_minimum=True)


@dataclass
class QuantizerConfig:
    """Fake quantization of the student."""

    name: str = "minmax"
    weight_bits: int = 3
    activation_bits: int = 3
    gradient: str = "pass_through"
    """Straight-through estimator: ``pass_through`` (the paper's) or ``clipped`` to the range."""
    momentum: float = 0.9
    """Momentum of the exponential moving average of activation ranges while calibrating."""
    include_zero: bool = False
    """Extend every range to contain zero, as integer engines require."""

    def __post_init__(self) -> None:
        require_choice("quantizer.name", self.name, QUANTIZERS)
        require_range("quantizer.weight_bits", self.weight_bits, MIN_BITS, MAX_BITS)
        require_range("quantizer.activation_bits", self.activation_bits, MIN_BITS, MAX_BITS)
        require_choice("quantizer.gradient", self.gradient, GRADIENTS)
        require_range("quantizer.momentum", self.momentum, 0, 0.9999)


@dataclass
class LearningRateConfig:
    """How the student's learning rate moves over its steps."""

    policy: str = "multistep"
    milestones: list[int] = field(default_factory=list)
    """Student steps after which the rate is multiplied by ``factor`` (multistep)."""
    factor: float = 0.1
    warmup_steps: int = 0
    """Student steps of linear warm-up from zero (any policy)."""

    def __post_init__(self) -> None:
        require_choice("schedule.learning_rate.policy", self.policy, LEARNING_RATE_POLICIES)
        require_range("schedule.learning_rate.factor", self.factor, 0, 1, open_minimum=True)
        require_range("schedule.learning_rate.warmup_steps", self.warmup_steps, 0)
        for milestone in self.milestones:
            require_range("schedule.learning_rate.milestones", milestone, 0)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigurationError(
                f"schedule.learning_rate.milestones={list(self.milestones)} must increase"
            )


@dataclass
class ScheduleConfig:
    """Which step comes when."""

    name: str = MISSING
    synthesis_steps: int | None = None
    """Steps of the sample source; none: as many as the image bank needs to be filled once."""
    calibration_steps: int = MISSING
    """Steps that only observe activation ranges; the ranges are frozen after them."""
    student_steps: int = MISSING
    learning_rate: LearningRateConfig = field(default_factory=LearningRateConfig)

    def __post_init__(self) -> None:
        require_choice("schedule.name", self.name, SCHEDULES)
        if self.synthesis_steps is not None:
            require_range("schedule.synthesis_steps", self.synthesis_steps, 0)
        require_range("schedule.calibration_steps", self.calibration_steps, 1)
        require_range("schedule.student_steps", self.student_steps, 0)


@dataclass
class AugmentationConfig:
    """Random resized crop and horizontal flip, drawn afresh for every image."""

    probability: float = 0.0
    """Probability that a whole batch is augmented; 0 switches augmentation off."""
    min_scale: float = 0.5
    max_scale: float = 1.0
    """Range of the crop's area as a share of the image's."""
    flip: float = 0.5
    """Probability of a horizontal flip, per image."""

    def __post_init__(self) -> None:
        require_range("augmentation.probability", self.probability, 0, 1)
        require_range("augmentation.flip", self.flip, 0, 1)
        require_range("augmentation.min_scale", self.min_scale, 0, 1, open_minimum=True)
        require_range("augmentation.max_scale", self.max_scale, self.min_scale, 1)


@dataclass
class HardnessConfig:
    """Hardness-weighted cross-entropy of the synthesis, ``beta * mean[d^gamma * CE]``."""

    enabled: bool = True
    """False: every sample weighs the same (gamma = 0), the plain cross-entropy."""
    beta: float = 10.0
    gamma: float = 2.0

    def __post_init__(self) -> None:
        require_range("synthesis.hardness.beta", self.beta, 0)
        require_range("synthesis.hardness.gamma", self.gamma, 0)


@dataclass
class ImageBankConfig:
    """A bank of images that are themselves the parameters."""

    size: int = 5120
    batch_size: int = 256
    iterations: int = 1000
    """Optimizer steps that each batch of images gets."""
    lr: float = 0.5
    patience: int = 50
    factor: float = 0.1
    min_lr: float = 1e-4

    def __post_init__(self) -> None:
        require_range("synthesis.bank.size", self.size, 1)
        require_range("synthesis.bank.batch_size", self.batch_size, 1)
        require_range("synthesis.bank.iterations", self.iterations, 1)
        require_range("synthesis.bank.lr", self.lr, 0, open_minimum=True)
        require_range("synthesis.bank.patience", self.patience, 0)
        require_range("synthesis.bank.factor", self.factor, 0, 1, open_minimum=True)
        require_range("synthesis.bank.min_lr", self.min_lr, 0)
        if self.size % self.batch_size:
            raise ConfigurationError(
                f"synthesis.bank.size={self.size} must be a multiple of "
                f"synthesis.bank.batch_size={self.batch_size}"
            )


@dataclass
class GeneratorConfig:
    """The conditional generator network (GDFQ)."""

    latent_dim: int = 100
    conditioning: str = "embedding"
    """How the label enters: latent times ``embedding``, or class-conditional ``batch_norm``."""
    batch_size: int = 64
    lr: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.999

    def __post_init__(self) -> None:
        require_choice("synthesis.generator.conditioning", self.conditioning, CONDITIONINGS)
        require_range("synthesis.generator.latent_dim", self.latent_dim, 1)
        require_range("synthesis.generator.batch_size", self.batch_size, 1)
        require_range("synthesis.generator.lr", self.lr, 0, open_minimum=True)
        require_range("synthesis.generator.beta1", self.beta1, 0, 0.9999)
        require_range("synthesis.generator.beta2", self.beta2, 0, 0.9999)


@dataclass
class CalibrationConfig:
    """The images that activation ranges are calibrated on."""

    source: str = "generator"
    """``generator``: a conditional generator trained while it calibrates, as released;
    ``synthesis``: samples of the main source."""
    batch_size: int = 16
    cross_entropy_weight: float = 1.0
    bns_weight: float = 0.1

    def __post_init__(self) -> None:
        require_choice("synthesis.calibration.source", self.source, CALIBRATION_SOURCES)
        require_range("synthesis.calibration.batch_size", self.batch_size, 1)
        require_range("synthesis.calibration.cross_entropy_weight", self.cross_entropy_weight, 0)
        require_range("synthesis.calibration.bns_weight", self.bns_weight, 0)


@dataclass
class SynthesisConfig:
    """Where the training images come from."""

    source: str = MISSING
    load: str | None = None
    """A saved image bank or generator (.safetensors) to use instead of synthesizing one."""
    bns_weight: float = 1.0
    hardness: HardnessConfig = field(default_factory=HardnessConfig)
    bank: ImageBankConfig = field(default_factory=ImageBankConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def __post_init__(self) -> None:
        require_choice("synthesis.source", self.source, SOURCES)
        require_range("synthesis.bns_weight", self.bns_weight, 0)


@dataclass
class DistillationTermConfig:
    """Knowledge distillation: ``weight * temperature^2 * KL(T || S)``."""

    weight: float = 20.0
    temperature: float = 20.0
    reduction: str = "batchmean"
    """``batchmean`` as HAST's; ``mean`` averages over classes too, as GDFQ's released code."""

    def __post_init__(self) -> None:
        require_range("distillation.kd.weight", self.weight, 0)
        require_range("distillation.kd.temperature", self.temperature, 0, open_minimum=True)
        require_choice("distillation.kd.reduction", self.reduction, KD_REDUCTIONS)


@dataclass
class AlignmentConfig:
    """Feature alignment: ``weight * sum over blocks of MSE(a_S, a_T)``."""

    enabled: bool = True
    weight: float = 1000.0

    def __post_init__(self) -> None:
        require_range("distillation.alignment.weight", self.weight, 0)


@dataclass
class PromotionConfig:
    """Sample difficulty promotion: train on ``x + eps * sign(dL/dx)`` too."""

    enabled: bool = True
    eps: float = 0.01
    """Size of the perturbation in normalized pixel units."""

    def __post_init__(self) -> None:
        require_range("distillation.promotion.eps", self.eps, 0)


@dataclass
class OptimizerConfig:
    """The student's optimizer."""

    name: str = "sgd"
    lr: float = 1e-5
    momentum: float = 0.9
    """Nesterov momentum (sgd only)."""
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        require_choice("distillation.optimizer.name", self.name, OPTIMIZERS)
        require_range("distillation.optimizer.lr", self.lr, 0, open_minimum=True)
        require_range("distillation.optimizer.momentum", self.momentum, 0, 0.9999)
        require_range("distillation.optimizer.weight_decay", self.weight_decay, 0)


@dataclass
class DistillationConfig:
    """How the student learns from the teacher."""

    batch_size: int = 64
    kd: DistillationTermConfig = field(default_factory=DistillationTermConfig)
    cross_entropy_weight: float = 0.0
    """Weight of the cross-entropy of the student against the synthetic labels."""
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    promotion: PromotionConfig = field(default_factory=PromotionConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require_range("distillation.batch_size", self.batch_size, 1)
        require_range("distillation.cross_entropy_weight", self.cross_entropy_weight, 0)
        aligned = self.alignment.enabled and self.alignment.weight
        if not (self.kd.weight or self.cross_entropy_weight or aligned):
            raise ConfigurationError(
                "distillation has no term: give distillation.kd.weight, "
                "distillation.cross_entropy_weight or distillation.alignment.weight a value"
            )


@dataclass
class DataConfig:
    """Evaluation data; nothing here is ever trained on."""

    source: str = MISSING
    path: str | None = None
    batch_size: int = 256
    holdout: float = 0.0
    """Share of the image bank kept from training, to measure agreement on (``data=none``)."""

    def __post_init__(self) -> None:
        require_choice("data.source", self.source, DATA_SOURCES)
        require_range("data.batch_size", self.batch_size, 1)
        require_range("data.holdout", self.holdout, 0, 0.5)
        if self.source == "none":
            require_range("data.holdout", self.holdout, 0, open_minimum=True)
        if self.source == "npz" and self.path is None:
            raise ConfigurationError(
                "data.path is not set: point it at an .npz file with x (uint8 N,H,W,C) and y "
                "(integers), or choose data=none"
            )


@dataclass
class TrainerConfig:
    """Device, precision and the options that change speed and not results."""

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    channels_last: bool = False
    compile: bool = False
    """torch.compile the teacher's and the student's passes."""
    threads: int | None = None
    """CPU threads of torch; none: torch's own choice."""
    log_every_n_steps: int = 10

    def __post_init__(self) -> None:
        require_range("trainer.devices", self.devices, 1)
        require_range("trainer.num_nodes", self.num_nodes, 1)
        require_choice("trainer.precision", self.precision, PRECISIONS)
        require_range("trainer.log_every_n_steps", self.log_every_n_steps, 1)
        if self.threads is not None:
            require_range("trainer.threads", self.threads, 1)


@dataclass
class LoggerConfig:
    """A logger beside metrics.csv, which is always written."""

    name: str = "csv"
    project: str = "hast-lightning"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_choice("logger.name", self.name, LOGGERS)


@dataclass
class CallbacksConfig:
    """What happens beside training."""

    progress: bool = True
    checkpoint_every_n_steps: int = 1000
    evaluate_every_n_steps: int = 0
    """Student steps between evaluations that are only logged; 0: none."""
    grid_images: int = 32
    """Images in the PNG grid of synthetic samples."""

    def __post_init__(self) -> None:
        require_range("callbacks.checkpoint_every_n_steps", self.checkpoint_every_n_steps, 1)
        require_range("callbacks.evaluate_every_n_steps", self.evaluate_every_n_steps, 0)
        require_range("callbacks.grid_images", self.grid_images, 1)


@dataclass
class Config:
    """One run, whole.

    The groups default to missing, not to instances: OmegaConf would build the
    instances, and so run their checks, before the YAML has filled them.
    """

    recipe: str = MISSING
    seed: int = 0
    run: list[str] = field(default_factory=lambda: list(STAGES))
    """The agenda: which of the stages run, always in their natural order."""
    model: ModelConfig = MISSING
    quantizer: QuantizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    synthesis: SynthesisConfig = MISSING
    distillation: DistillationConfig = MISSING
    data: DataConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    callbacks: CallbacksConfig = MISSING

    def __post_init__(self) -> None:
        require_range("seed", self.seed, 0, 2**32 - 1)
        for stage in self.run:
            require_choice("run", stage, STAGES)
        self._check_agenda()
        self._check_source_and_schedule()

    def _check_agenda(self) -> None:
        if not {"synthesize", "distill"} & set(self.run):
            raise ConfigurationError(
                f"run={list(self.run)} has neither synthesize nor distill: nothing would be done"
            )
        if "synthesize" not in self.run and self.synthesis.load is None:
            raise ConfigurationError(
                f"run={list(self.run)} has no synthesize and synthesis.load is not set: there "
                "would be no images to train on"
            )
        if "synthesize" in self.run and "distill" not in self.run and self.synthesis.load:
            raise ConfigurationError(
                f"run={list(self.run)} with synthesis.load={self.synthesis.load}: nothing would "
                "be done; the samples are there already"
            )

    def _check_source_and_schedule(self) -> None:
        # Without distill there is nothing to alternate with: only the synthesis is planned.
        stage_of_its_own = self.schedule.name == "two_stage" or "distill" not in self.run
        endless = self.schedule.synthesis_steps is None and self.synthesis.load is None
        if self.synthesis.source == "generator" and stage_of_its_own and endless:
            raise ConfigurationError(
                "schedule.synthesis_steps is not set: a generator has no natural end; say how "
                "many steps it gets before the student starts"
            )


def register_schemas() -> None:
    """Make the root schema known to Hydra as ``schema``; idempotent."""
    ConfigStore.instance().store(name="schema", node=Config)


def to_object(config: DictConfig) -> Config:
    """Resolve the composed configuration and run every check.

    Raises:
        ConfigurationError: a value is missing, of the wrong type or out of range.
    """
    _refuse_added_keys(config)
    try:
        result: Any = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigurationError(str(error).splitlines()[0]) from error
    assert isinstance(result, Config)
    return result


def _refuse_added_keys(group: DictConfig, prefix: str = "") -> None:
    """Refuse what the schema does not have: Hydra's ``+key=value`` adds it all the same."""
    schema = OmegaConf.get_type(group)
    assert schema is not None
    known = {field.name for field in fields(schema)}
    for key in map(str, group):
        if key not in known:
            raise ConfigurationError(
                f"{prefix}{key} is no key of the configuration; "
                f"{prefix.rstrip('.') or 'the root'} has: {', '.join(sorted(known))}"
            )
        if not OmegaConf.is_missing(group, key) and isinstance(group[key], DictConfig):
            _refuse_added_keys(group[key], f"{prefix}{key}.")
