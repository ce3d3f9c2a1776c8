"""The DDPM for MNIST of sdaloglu/diffusion_with_entropy (MIT), without its weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

SIDE, TIMESTEPS = 28, 1000
WIDTHS = (1, 16, 32, 32, 16)
FREQUENCIES, HIDDEN = 16, 128


class Block(nn.Module):
    """A wide convolution, LayerNorm over channels and positions, and GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(inputs, outputs, 7, padding=3),
            nn.LayerNorm((outputs, SIDE, SIDE)),
            nn.GELU(),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, inputs, 28, 28) to (N, outputs, 28, 28)."""
        result: Tensor = self.net(maps)
        return result


class DDPM(nn.Module):
    """Four blocks and a convolution; the timestep is added behind the first. 291 thousand weights.

    Attributes:
        alpha_bar: Share of the signal's variance at each timestep, (1001,).
    """

    alpha_bar: Tensor
    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        blocks = [Block(*ends) for ends in pairwise(WIDTHS)]
        self.blocks = nn.ModuleList([*blocks, nn.Conv2d(WIDTHS[-1], 1, 3, padding=1)])
        self.time_embed = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, WIDTHS[1]),
        )
        self.register_buffer("frequencies", torch.ones(FREQUENCIES))
        # The weights bring their own: these are for trials without them.
        betas = torch.linspace(1e-4, 0.02, TIMESTEPS + 1)
        self.register_buffer("alpha_bar", (1 - betas).cumprod(0))

    def forward(self, pictures: Tensor, times: Tensor) -> Tensor:
        """Return the noise in pictures (N, 1, 28, 28) at timesteps (N,), 0 to 1000."""
        phase = (times / TIMESTEPS)[:, None] * self.frequencies
        waves = torch.cat([phase.sin(), phase.cos() - 1], dim=1)
        maps = self.blocks[0](pictures) + self.time_embed(waves)[:, :, None, None]
        for block in list(self.blocks)[1:]:
            maps = block(maps)
        return maps
