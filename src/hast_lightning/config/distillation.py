"""The ``distillation`` group."""

from __future__ import annotations

from dataclasses import dataclass, field

from hast_lightning.config.augmentation import AugmentationConfig
from hast_lightning.config.checks import MAX_RATE, require_choice, require_range
from hast_lightning.errors import ConfigurationError

KD_REDUCTIONS = ("batchmean", "mean")
OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass
class DistillationTermConfig:
    """Knowledge distillation: ``weight * temperature^2 * KL(T || S)``."""

    weight: float = 20.0
    """Weight of the term; 0 leaves it out."""
    temperature: float = 20.0
    """What both networks' logits are divided by."""
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
    """The ablation's switch."""
    weight: float = 1000.0
    """The paper's lambda."""

    def __post_init__(self) -> None:
        require_range("distillation.alignment.weight", self.weight, 0)


@dataclass
class PromotionConfig:
    """Sample difficulty promotion: train on ``x + eps * sign(dL/dx)`` too."""

    enabled: bool = True
    """The ablation's switch."""
    eps: float = 0.01
    """Size of the perturbation in normalized pixel units."""

    def __post_init__(self) -> None:
        require_range("distillation.promotion.eps", self.eps, 0)


@dataclass
class OptimizerConfig:
    """The student's optimizer."""

    name: str = "sgd"
    """``sgd`` (with Nesterov momentum), ``adam`` or ``adamw``."""
    lr: float = 1e-5
    """Learning rate, before the schedule multiplies it."""
    momentum: float = 0.9
    """Nesterov momentum (sgd only)."""
    weight_decay: float = 1e-4
    """Weight decay of everything but learned step sizes."""
    clip_norm: float | None = None
    """Largest norm of the student's gradient, to which a longer one is shortened; none: any."""

    def __post_init__(self) -> None:
        require_choice("distillation.optimizer.name", self.name, OPTIMIZERS)
        require_range("distillation.optimizer.lr", self.lr, 0, MAX_RATE, open_minimum=True)
        require_range("distillation.optimizer.momentum", self.momentum, 0, 0.9999)
        require_range("distillation.optimizer.weight_decay", self.weight_decay, 0, MAX_RATE)
        if self.clip_norm is not None:
            require_range("distillation.optimizer.clip_norm", self.clip_norm, 0, open_minimum=True)


@dataclass
class DistillationConfig:
    """How the student learns from the teacher."""

    batch_size: int = 64
    """Images of a student step, on each device."""
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
