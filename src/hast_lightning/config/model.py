"""The ``model`` group."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from hast_lightning.core.checks import expand_home, require_choice, require_range
from hast_lightning.core.front_end import FrontEnd
from hast_lightning.core.network import DIFFUSION, FEATURES, MODALITIES, PICTURES, TOKENS
from hast_lightning.errors import ConfigurationError

PROVIDERS = (
    "digits",
    "cifar_resnet",
    "torchvision",
    "timm",
    "pytorchcv",
    "efficientnet_lite0",
    "transformers",
    "own",
    "given",
)
SIZE = re.compile(r"(\d+)x(\d+)")
SMALLEST = 4
"""Pixels or frames."""
FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass
class ModelConfig:
    """The pretrained network: where it comes from and what it expects as input."""

    provider: str = MISSING
    """``digits`` (bundled), ``cifar_resnet`` (by depth), ``torchvision``, ``timm`` or ``pytorchcv``
    (by name), ``efficientnet_lite0`` (from a package), ``transformers`` (by a file of its
    configuration), ``own`` (by factory), or ``given`` to
    :func:`hast_lightning.quantize` in Python."""
    name: str = MISSING
    """Name in reports; for torchvision, timm and pytorchcv the name that they know it by."""
    factory: str | None = None
    """``package.module:function`` that builds the user's ``own`` network."""
    config_file: str | None = None
    """``config.json`` of a causal language model of ``transformers``."""
    pretrained: bool = True
    """Load pretrained weights; false keeps the random initialization (for trials without files).
    The weights of an ``own`` network are those it is built with unless a checkpoint is given."""
    checkpoint: str | None = None
    """Weights to load instead of the provider's own: .safetensors, a torch state dict, or a
    checkpoint that has one under any keys, Lightning's among them."""
    checkpoint_key: str | None = None
    """Where the weights are in a checkpoint that has several of this network, such as plain ones
    and their average: keys and the prefix of the names, joined by dots (``state_dict.model``)."""
    depth: int | None = None
    """Depth of a ``cifar_resnet``: 6n+2, e.g. 20, 32, 44, 56."""
    num_classes: int | None = None
    """Length of the output; none: the provider's own."""
    # OmegaConf has no such union: what it is in words, for the reference.
    input_size: Annotated[Any, "integer, text or null"] = None
    """Height and width of the input in pixels, one number of a square; ``49x10`` is 49 frames of
    10 coefficients; of tokens their number. None: the provider's own (an ``own`` network has
    none)."""
    modality: str = PICTURES
    """``pictures``; or ``features`` such as MFCC (channels, frames, coefficients), which an ``own``
    or given network takes: the mean and deviation of each coefficient are learned from its
    BatchNorms, samples are shifted in time where pictures are cropped, and data may be floats. Or
    ``diffusion``: the network takes noisy pictures and their timesteps, and puts out the noise. Or
    ``tokens``, integers (texts, length), of which an ``own`` network says what comes next."""
    front_end: FrontEnd = field(default_factory=FrontEnd)
    """Of ``features``, how they are made of recordings: for ``data=wav``, and for
    ``command=predict`` on .wav files."""
    noise_schedule: str | None = None
    """Of ``diffusion``, the share of the signal's variance at each timestep: ``linear`` (DDPM's),
    ``cosine``, or a .safetensors file with ``alpha_bar``; none: the network's own buffer
    ``alpha_bar`` or ``alphas_cumprod``."""
    noise_steps: int = 1000
    """Timesteps of a ``linear`` or ``cosine`` schedule."""
    mean: list[float] | None = None
    """Per-channel mean that the input was normalized with, for pixels in [0, 1]; of features any
    number, for values as they are in the file; none is 0."""
    std: list[float] | None = None
    """Per-channel standard deviation, likewise; of features none is 1."""
    class_names: list[str] | None = None
    """One a class, in the order of the output; none: the provider's own, if it has any."""
    license: str | None = None
    """License of the weights, as model hubs write it (``apache-2.0``), for the model card."""
    taps: list[str] | None = None
    """Name patterns (shell style) of the feature taps; none: found from the network's graph."""

    def __post_init__(self) -> None:
        require_choice("model.provider", self.provider, PROVIDERS)
        self.checkpoint = expand_home(self.checkpoint)
        self._refuse_contradictions()
        if self.provider == "cifar_resnet":
            self._check_cifar_resnet()
        if self.provider == "own":
            self._check_own()
        if (self.provider == "transformers") != (self.config_file is not None):
            raise ConfigurationError(
                f"model.config_file={self.config_file} with model.provider={self.provider}: a file "
                "of the network's configuration is what model=transformers needs, and only it"
            )
        self.config_file = expand_home(self.config_file)
        if self.num_classes is not None:
            require_range("model.num_classes", self.num_classes, 2)
        _ = self.size
        require_choice("model.modality", self.modality, MODALITIES)
        self._check_provider_of_modality()
        self._check_diffusion()
        if self.modality == TOKENS:
            self._check_tokens()
        self._check_front_end()
        if (self.mean is None) != (self.std is None):
            raise ConfigurationError("model.mean and model.std go together: set both or neither")
        for mean in self.mean or ():
            if self.modality == PICTURES:
                require_range("model.mean", mean, 0, 1)
            elif not math.isfinite(mean):
                raise ConfigurationError(f"model.mean={mean} must be a finite number")
        for deviation in self.std or ():
            require_range("model.std", deviation, 0, open_minimum=True)

    @property
    def size(self) -> tuple[int, int] | None:
        """Return the height and width of the input, or none.

        Raises:
            ConfigurationError: ``input_size`` is neither a number nor ``HxW``, or too small.
        """
        if self.input_size is None:
            return None
        text = str(self.input_size)
        found = SIZE.fullmatch(text if "x" in text else f"{text}x{text}")
        if found is None:
            raise ConfigurationError(
                f"model.input_size={self.input_size} must be a number of pixels, or height x width "
                "such as 49x10"
            )
        height, width = int(found[1]), int(found[2])
        if min(height, width) < SMALLEST:
            raise ConfigurationError(
                f"model.input_size={self.input_size} must be at least {SMALLEST} in both directions"
            )
        return height, width

    def _check_provider_of_modality(self) -> None:
        takers = ("own", "transformers") if self.modality == TOKENS else ("own", "given")
        if self.modality != PICTURES and self.provider not in takers:
            what = (
                "quantize takes no tokens"
                if self.provider == "given"
                else "whose networks take pictures"
            )
            raise ConfigurationError(
                f"model.modality={self.modality} with model.provider={self.provider}, {what}; "
                "choose model=own"
            )
        if self.provider == "transformers" and self.modality != TOKENS:
            raise ConfigurationError(
                f"model.modality={self.modality} with model.provider=transformers, whose networks "
                "take tokens"
            )

    def _check_diffusion(self) -> None:
        require_range("model.noise_steps", self.noise_steps, 2)
        if self.modality != DIFFUSION:
            if self.noise_schedule is not None:
                raise ConfigurationError(
                    f"model.noise_schedule={self.noise_schedule} with model.modality="
                    f"{self.modality}, which has none; choose model.modality=diffusion"
                )
            return
        for name in ("mean", "std", "class_names", "num_classes", "taps"):
            if getattr(self, name) is not None:
                raise ConfigurationError(
                    f"model.{name} with model.modality=diffusion, whose network takes noisy "
                    "pictures as they are and puts out noise; leave it out"
                )

    @property
    def hearing(self) -> FrontEnd | None:
        """Return the front end; none where there is none."""
        return self.front_end if self.front_end.sample_rate else None

    def _check_front_end(self) -> None:
        if self.hearing is None:
            return
        if self.modality != FEATURES:
            raise ConfigurationError(
                f"model.front_end with model.modality={self.modality}: it makes features of "
                "recordings; choose model.modality=features"
            )
        _, frames, coefficients = self.hearing.shape
        if self.size not in (None, (frames, coefficients)):
            raise ConfigurationError(
                f"model.input_size={self.input_size} with a model.front_end that makes {frames} "
                f"frames of {coefficients} coefficients: say model.input_size={frames}x"
                f"{coefficients}, or change seconds, stride_ms or coefficients"
            )

    @property
    def length(self) -> int:
        """Return the number of tokens that the input has."""
        height, _ = self.size or (0, 0)
        return height

    def _check_tokens(self) -> None:
        if self.input_size is None:
            raise ConfigurationError("model.input_size is not set: say how many tokens a text has")
        if "x" in str(self.input_size):
            raise ConfigurationError(
                f"model.input_size={self.input_size} with model.modality=tokens must be one number "
                "of tokens"
            )
        if self.mean is not None or self.std is not None:
            raise ConfigurationError(
                "model.mean and model.std with model.modality=tokens: ids are not normalized"
            )
        if self.class_names is not None:
            raise ConfigurationError(
                "model.class_names with model.modality=tokens: tokens have ids and no names"
            )

    def _check_cifar_resnet(self) -> None:
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

    def _check_own(self) -> None:
        if self.factory is None or not FACTORY.fullmatch(self.factory):
            raise ConfigurationError(
                f"model.factory={self.factory} must be package.module:function, a function that "
                "returns the network"
            )
        if self.input_size is None:
            raise ConfigurationError(
                "model.input_size is not set: say the height and width in pixels that the network "
                f"of {self.factory} expects"
            )

    def _refuse_contradictions(self) -> None:
        """Refuse what would be ignored in silence."""
        if self.checkpoint is not None and not self.pretrained:
            raise ConfigurationError(
                f"model.checkpoint={self.checkpoint} with model.pretrained=false: the file would "
                "not be read; leave one of them out"
            )
        if self.checkpoint_key is not None and self.checkpoint is None:
            raise ConfigurationError(
                f"model.checkpoint_key={self.checkpoint_key} without model.checkpoint: there is no "
                "file to look into"
            )
        if self.depth is not None and self.provider != "cifar_resnet":
            raise ConfigurationError(
                f"model.depth={self.depth}: only model.provider=cifar_resnet has a depth"
            )
        if self.factory is not None and self.provider != "own":
            raise ConfigurationError(
                f"model.factory={self.factory} with model.provider={self.provider}: it would not "
                "be called; choose model=own"
            )
