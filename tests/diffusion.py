"""A tiny U-Net that denoises pictures of 8x8 pixels, as users write one, and how a run loads it."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models import zoo

SHAPE = (1, 8, 8)
TIMESTEPS = 40
WORDS = (
    "model=own",
    "model.factory=tests.diffusion:network",
    "model.input_size=8",
    "model.modality=diffusion",
    "model.noise_schedule=linear",
    f"model.noise_steps={TIMESTEPS}",
)
"""Of the command line."""
SMALL = (
    "sources.points.samples=12",
    "sources.points.held_out_samples=6",
    "sources.points.steps=4",
    "sources.points.compared_runs=2",
    "stages.calibration.steps=2",
    "stages.calibration.batch_size=4",
    "stages.reconstruction.samples=12",
    "stages.reconstruction.iterations=2",
    "stages.reconstruction.batch_size=4",
    "safeguard.images=4",
)
"""Of method=eda_dm_style."""


class Block(nn.Module):
    """A residual block that a timestep is added in."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.of_time = nn.Linear(8, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(nn.functional.silu(self.norm(x)))
        h = h + self.of_time(nn.functional.silu(time))[:, :, None, None]
        return self.skip(x) + self.second(nn.functional.silu(h))


class UNet(nn.Module):
    """Down, in the middle and up, with one skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8))
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.down = Block(4, 4)
        self.shrink = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.middle = Block(4, 4)
        self.up = Block(8, 4)
        self.head = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rates = torch.exp(-math.log(1000) * torch.arange(4, device=x.device) / 4)
        phase = t[:, None] * rates
        time = self.time(torch.cat([phase.sin(), phase.cos()], dim=1))
        first = self.down(self.stem(x), time)
        low = self.middle(self.shrink(first), time)
        high = nn.functional.interpolate(low, scale_factor=2, mode="nearest")
        return self.head(self.up(torch.cat([high, first], dim=1), time))


def network() -> nn.Module:
    """Return the network, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet().eval()


@functools.cache
def loaded() -> PretrainedNetwork:
    """The same as a run loads it."""
    return zoo.load(
        ModelConfig(
            provider="own",
            name="tiny",
            factory="tests.diffusion:network",
            input_size=8,
            modality="diffusion",
            noise_schedule="linear",
            noise_steps=TIMESTEPS,
        )
    )
