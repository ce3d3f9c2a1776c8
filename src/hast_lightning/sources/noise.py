"""Noise, and pictures that are drawn like it: what needs no synthesis."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_choice
from hast_lightning.core.part import part
from hast_lightning.core.source import Site, Source
from hast_lightning.sources.starts import STARTS, started
from hast_lightning.sources.suitability import refuse_maps


@part("source", "noise")
class Noise(Source):
    """Inputs drawn from N(0, 1), whose labels are drawn uniformly: the lower end of comparisons.

    For a network with several outputs there are no labels.

    Features vary slowly in time, with the mean and deviation of each coefficient that the network
    expects.
    """

    start: str = "white"
    """``white``; ``smooth`` noise, or pictures of ``leaves``, or of leaves that are ``textured``,
    anew for every batch (all three ours)."""

    place: ClassVar[Tensor]
    several_outputs = True

    def __post_init__(self) -> None:
        require_choice("start", self.start, STARTS)

    def build(self, site: Site) -> None:
        """Remember the device that samples are drawn on."""
        super().build(site)
        refuse_maps(site.pretrained, f"{site.key}={self.kind}")
        if site.pretrained.outputs is not None:
            vars(self)["label_kind"] = "none"
        self.register_buffer("place", torch.zeros(()), persistent=False)

    def sample(self, count: int) -> Batch:
        """Return fresh noise (count, ...) and labels (count,), if there are classes."""
        device = self.place.device
        network = self.site.pretrained
        white = torch.randn(count, *network.input_shape, device=device)
        noise = started(network, white, self.start)
        inputs = network.inputs_of(noise)
        if self.label_kind == "none":
            return Batch(inputs)
        return Batch(inputs, torch.randint(network.num_classes, (count,), device=device))
