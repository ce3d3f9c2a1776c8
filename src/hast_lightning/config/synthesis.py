"""The ``synthesis`` group."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from hast_lightning.config.augmentation import AugmentationConfig
from hast_lightning.config.checks import MAX_RATE, expand_home, require_choice, require_range
from hast_lightning.errors import ConfigurationError

SOURCES = ("generator", "image_bank", "images")
CONDITIONINGS = ("embedding", "batch_norm")
CALIBRATION_SOURCES = ("generator", "synthesis")


@dataclass
class HardnessConfig:
    """Hardness-weighted cross-entropy of the synthesis, ``beta * mean[d^gamma * CE]``."""

    enabled: bool = True
    """False: every sample weighs the same (gamma = 0), the plain cross-entropy."""
    beta: float = 10.0
    """Weight of the term."""
    gamma: float = 2.0
    """Exponent of the difficulty d = 1 - p_y: the larger, the less easy samples count."""

    def __post_init__(self) -> None:
        require_range("synthesis.hardness.beta", self.beta, 0)
        require_range("synthesis.hardness.gamma", self.gamma, 0)


@dataclass
class ImageBankConfig:
    """A bank of images that are themselves the parameters."""

    size: int = 5120
    """Images in the bank."""
    batch_size: int = 256
    """Images that are optimized together."""
    iterations: int = 1000
    """Optimizer steps that each batch of images gets."""
    lr: float = 0.5
    """Learning rate of Adam, in normalized pixel units a step."""
    patience: int = 50
    """Steps without a lower loss after which the rate falls."""
    factor: float = 0.1
    """What the rate is then multiplied by."""
    min_lr: float = 1e-4
    """The rate does not fall below this."""

    def __post_init__(self) -> None:
        require_range("synthesis.bank.size", self.size, 1)
        require_range("synthesis.bank.batch_size", self.batch_size, 1)
        require_range("synthesis.bank.iterations", self.iterations, 1)
        require_range("synthesis.bank.lr", self.lr, 0, MAX_RATE, open_minimum=True)
        require_range("synthesis.bank.patience", self.patience, 0)
        require_range("synthesis.bank.factor", self.factor, 0, 1, open_minimum=True)
        require_range("synthesis.bank.min_lr", self.min_lr, 0, MAX_RATE)
        if self.size % self.batch_size:
            raise ConfigurationError(
                f"synthesis.bank.size={self.size} must be a multiple of "
                f"synthesis.bank.batch_size={self.batch_size}"
            )


@dataclass
class GeneratorConfig:
    """The conditional generator network (GDFQ)."""

    latent_dim: int = 100
    """Length of the noise vector that an image is made of."""
    conditioning: str = "embedding"
    """How the label enters: latent times ``embedding``, or class-conditional ``batch_norm``."""
    batch_size: int = 64
    """Images of a generator step."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    beta1: float = 0.5
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""

    def __post_init__(self) -> None:
        require_choice("synthesis.generator.conditioning", self.conditioning, CONDITIONINGS)
        require_range("synthesis.generator.latent_dim", self.latent_dim, 1)
        require_range("synthesis.generator.batch_size", self.batch_size, 1)
        require_range("synthesis.generator.lr", self.lr, 0, MAX_RATE, open_minimum=True)
        require_range("synthesis.generator.beta1", self.beta1, 0, 0.9999)
        require_range("synthesis.generator.beta2", self.beta2, 0, 0.9999)


@dataclass
class ImagesConfig:
    """The user's own unlabelled pictures in place of synthetic images."""

    path: str | None = None
    """A folder, searched at any depth, or an .npz file with ``x`` (uint8, N,H,W,C)."""
    max_images: int = 10_000
    """Pictures that are kept in memory, evenly spaced over those that there are. Each takes
    height x width x channels bytes: 10,000 of 224 pixels take 1.5 GB."""

    def __post_init__(self) -> None:
        self.path = expand_home(self.path)
        require_range("synthesis.images.max_images", self.max_images, 1)


@dataclass
class CalibrationConfig:
    """The images that activation ranges are calibrated on."""

    source: str = "generator"
    """``generator``: a conditional generator trained while it calibrates, as released;
    ``synthesis``: samples of the main source."""
    batch_size: int = 16
    """Images of a calibration step."""
    cross_entropy_weight: float = 1.0
    """Weight of the cross-entropy in the loss of the calibration generator."""
    bns_weight: float = 0.1
    """Weight of the batch-norm statistics in the same loss."""

    def __post_init__(self) -> None:
        require_choice("synthesis.calibration.source", self.source, CALIBRATION_SOURCES)
        require_range("synthesis.calibration.batch_size", self.batch_size, 1)
        require_range("synthesis.calibration.cross_entropy_weight", self.cross_entropy_weight, 0)
        require_range("synthesis.calibration.bns_weight", self.bns_weight, 0)


@dataclass
class SynthesisConfig:
    """Where the training images come from."""

    source: str = MISSING
    """``image_bank``: images that are the parameters; ``generator``: a conditional network."""
    load: str | None = None
    """A saved image bank or generator (.safetensors) to use instead of synthesizing one."""
    bns_weight: float = 1.0
    """Weight of the batch-norm statistics loss."""
    hardness: HardnessConfig = field(default_factory=HardnessConfig)
    bank: ImageBankConfig = field(default_factory=ImageBankConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def __post_init__(self) -> None:
        require_choice("synthesis.source", self.source, SOURCES)
        require_range("synthesis.bns_weight", self.bns_weight, 0)
        if self.source == "images" and self.load is not None:
            raise ConfigurationError(
                f"synthesis.load={self.load} with synthesis.source=images: the pictures are read "
                "from synthesis.images.path; leave synthesis.load out"
            )
        if self.source != "images" and self.images.path is not None:
            raise ConfigurationError(
                f"synthesis.images.path={self.images.path} with synthesis.source={self.source}: "
                "the pictures would not be used; choose synthesis=images"
            )
