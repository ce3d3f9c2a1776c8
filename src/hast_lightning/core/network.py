"""A network as parts see it: a graph whose values can be read by the names of its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, fx, nn

from hast_lightning.core.batch import Trace

RESIZE_RATIO = 256 / 224
"""The usual shorter side of a photograph, as a multiple of the crop's (He et al., 2016)."""


@dataclass(frozen=True)
class PretrainedNetwork:
    """A full-precision network in evaluation mode, and the input that it expects.

    Attributes:
        network: the network itself, in float32, as its own class or as its graph.
        name: its name in reports.
        input_shape: (channels, height, width).
        num_classes: length of the output.
        mean: per channel, what pixels in [0, 1] are normalized with.
        std: per channel.
        checksum: SHA-256 of the state dict as the provider gives it, in hexadecimal.
        resize_ratio: a photograph's shorter side before the centre crop, as a multiple of the
            crop's side; 256 / 224 is the usual one (He et al., 2016).
        class_names: one a class, in the order of the output; none where they are not known.
        taps: patterns of the names of nodes that features are aligned at; none: those that end
            the blocks of the graph.
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


class Network(Protocol):
    """Teacher or student.

    Attributes:
        graph_module: The graph; its nodes have the same names in teacher and student.
        pretrained: Where both come from.
    """

    @property
    def graph_module(self) -> fx.GraphModule:
        """Return the traced network, BatchNorms unfolded."""
        ...

    @property
    def pretrained(self) -> PretrainedNetwork:
        """Return what both networks were made of."""
        ...

    def trace(self, inputs: Tensor, nodes: Sequence[str] = (), *, unfolded: bool = False) -> Trace:
        """Run the network and read the values of some nodes."""
        ...
