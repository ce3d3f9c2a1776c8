"""A network as parts see it: a graph whose values can be read by the names of its nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from hast_lightning.core.batch import Trace
from hast_lightning.core.front_end import FrontEnd
from hast_lightning.core.outputs import Outputs

PICTURES, FEATURES, DIFFUSION, TOKENS = "pictures", "features", "diffusion", "tokens"
MODALITIES = (PICTURES, FEATURES, DIFFUSION, TOKENS)
RESIZE_RATIO = 256 / 224
"""The usual shorter side of a photograph, as a multiple of the crop's (He et al., 2016)."""
SHARED = 0.8
"""Share of the variance that the channels of smooth noise have in common, as colors do."""


def example_inputs(count: int, shape: Sequence[int]) -> Tensor:
    """Return zeros (count, ...) of the type that a network takes: one axis alone is of tokens."""
    return torch.zeros(count, *shape, dtype=torch.int64 if len(shape) == 1 else torch.float32)


def slowed(white: Tensor) -> Tensor:
    """Return noise (N, C, frames, coefficients) that is weaker at higher frequencies in time.

    Each coefficient has mean 0 and variance 1 over all samples and frames, so that samples differ
    in their means, as loud ones do from soft ones.
    """
    frames = white.shape[2]
    frequency = torch.arange(frames // 2 + 1, device=white.device).clamp_min(1)[:, None]
    slow = torch.fft.irfft(torch.fft.rfft(white, dim=2) / frequency, n=frames, dim=2)
    std, mean = torch.std_mean(slow, (0, 2), correction=0, keepdim=True)
    standard: Tensor = (slow - mean) / std.clamp_min(1e-6)
    return standard


def smoothed(
    white: Tensor,
    steepness: Tensor | float = 1.0,
    angle: Tensor | float = 0.0,
    stretch: Tensor | float = 1.0,
) -> Tensor:
    """Return noise (N, C, H, W) whose amplitude falls with the frequency, as that of photographs.

    Channels have :data:`SHARED` of their variance in common, as colors do. Each channel of each
    image has mean 0 and variance 1.

    Args:
        white: Standard normal noise, (N, C, H, W).
        steepness: The amplitude falls with this power of the frequency; 0: it stays white.
        angle: Direction, in radians, along which what is seen is drawn out.
        stretch: How far: the square of it is how much longer than wide.

    The last three are numbers, or tensors that broadcast with (N, 1, 1, 1).
    """
    channels, height, width = white.shape[1:]
    common = white.sum(dim=1, keepdim=True) / channels**0.5
    own = white - common / channels**0.5
    rows = torch.fft.fftfreq(height, device=white.device)[:, None] * height
    columns = torch.fft.rfftfreq(width, device=white.device)[None, :] * width
    turn = torch.as_tensor(angle)
    along = (torch.cos(turn) * columns + torch.sin(turn) * rows) * stretch
    across = (torch.cos(turn) * rows - torch.sin(turn) * columns) / stretch
    frequency = (along.square() + across.square()).sqrt().clamp_min(1.0) ** steepness
    mixed = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own
    smooth = torch.fft.irfft2(torch.fft.rfft2(mixed) / frequency, s=(height, width))
    centered: Tensor = smooth - smooth.mean(dim=(2, 3), keepdim=True)
    return centered / centered.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp_min(1e-6)


@dataclass(frozen=True)
class PretrainedNetwork:
    """A full-precision network in evaluation mode, and the input that it expects.

    Attributes:
        network: The network itself, in float32, as its own class or as its graph.
        name: Its name in reports.
        input_shape: (channels, height, width); of features (channels, frames, coefficients), of
            tokens (length,).
        num_classes: Length of the output; of several outputs all their values.
        mean: Per channel, what pixels in [0, 1] are normalized with, or features as they are; so
            is ``std``.
        checksum: SHA-256 of the state dict as the provider gives it, in hexadecimal.
        resize_ratio: A photograph's shorter side before the centre crop, as a multiple of the
            crop's side.
        class_names: One per class, in the order of the output; none where they are not known.
        taps: Patterns of the names of nodes that features are aligned at; none: those that end
            the blocks of the graph.
        modality: ``pictures``, whose normalized values have mean 0 and deviation 1 in each channel;
            ``features`` such as MFCC, which have any; ``diffusion``: noisy pictures with their
            timestep as last channel, to which the noise (N, C, H, W) is the answer; or ``tokens``:
            inputs are ids (N, length), and the output is (N, classes, length), the logits of what
            follows each.
        center: Mean of features that the network expects, (channels, 1, coefficients); none: 0.
        spread: Their standard deviation, likewise; none: 1.
        alpha_bar: Of diffusion, the share of the signal's variance at each timestep, (timesteps,).
        decoder: The network of tokens in its own code, where that has a cache for its own text
            (:class:`Decoder`).
        teachers: Networks that teach together with this one, of which the student is made, by
            name; mostly none.
        front_end: Of features, how they are made of recordings; none where nobody says.
        outputs: Several tensors that it puts out, which ``network`` has joined to one,
            (N, values); none: there is one.
    """

    network: nn.Module
    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str
    resize_ratio: float = RESIZE_RATIO
    class_names: tuple[str, ...] | None = None
    taps: tuple[str, ...] | None = None
    modality: str = PICTURES
    center: Tensor | None = None
    spread: Tensor | None = None
    alpha_bar: Tensor | None = None
    decoder: nn.Module | None = None
    teachers: Mapping[str, PretrainedNetwork] = field(default_factory=dict)
    front_end: FrontEnd | None = None
    outputs: Outputs | None = None

    @property
    def teaching_checksum(self) -> str:
        """Return the checksum of all that teaches: this network's own where it does so alone."""
        if not self.teachers:
            return self.checksum
        lines = [
            self.checksum,
            *(f"{name} {each.checksum}" for name, each in self.teachers.items()),
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def denoises(self) -> bool:
        """Return whether inputs have a timestep as their last channel, and the answer is noise."""
        return self.modality == DIFFUSION

    @property
    def values(self) -> Outputs | None:
        """Return what outputs are that are values, and no classes; none: they are logits."""
        if self.denoises:
            channels, *sides = self.input_shape
            return Outputs.alone((channels - 1, *sides))
        return self.outputs

    @property
    def regresses(self) -> bool:
        """Return whether outputs are values, compared by their squared error, and no classes."""
        return self.values is not None

    @property
    def length(self) -> int:
        """Return the tokens of a text."""
        return self.input_shape[0]

    def noise_of(self, white: Tensor, *, smooth: bool = False) -> Tensor:
        """Return the noise that samples start from, with mean 0 and deviation 1.

        Of features it is slow in time alone, since neighbors among coefficients are not alike; of
        pictures white, or smooth where that is asked for.
        """
        if self.modality == FEATURES:
            return slowed(white)
        return smoothed(white) if smooth and white.dim() == 4 else white

    def inputs_of(self, standard: Tensor) -> Tensor:
        """Return inputs (N, C, H, W) of values that have mean 0 and deviation 1."""
        moved = self.steps_of(standard)
        return moved if self.center is None else moved + self.center.to(moved)

    def standardized(self, inputs: Tensor) -> Tensor:
        """Return inputs (N, C, H, W) in deviations from their mean: undoes :meth:`inputs_of`."""
        moved = inputs if self.center is None else inputs - self.center.to(inputs)
        return moved if self.spread is None else moved / self.spread.to(inputs)

    def steps_of(self, standard: Tensor) -> Tensor:
        """Return differences of inputs (N, C, H, W) of those in standard deviations."""
        return standard if self.spread is None else standard * self.spread.to(standard)


@runtime_checkable
class Decoder(Protocol):
    """A network of tokens that remembers what it has seen of a text."""

    def decode(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Return logits (N, n, vocabulary) of n more tokens (N, n), and the cache with them.

        The cache is whatever the network makes of it, and none before the first tokens.
        """
        ...


class Network(Protocol):
    """Teacher or student, whose graphs have nodes of the same names."""

    @property
    def graph_module(self) -> fx.GraphModule:
        """Return the traced network, BatchNorms unfolded."""
        ...

    @property
    def pretrained(self) -> PretrainedNetwork:
        """Return what both networks were made of."""
        ...

    def trace(self, inputs: Tensor, nodes: Sequence[str] = (), *, unfolded: bool = False) -> Trace:
        """Run the network and read the values of some nodes; ``unfolded`` keeps BatchNorms."""
        ...
