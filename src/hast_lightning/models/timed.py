"""A denoising network of two inputs, pictures and timesteps, as one of a single input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hast_lightning.core.diffusion import with_time, without_time

TRIED = 2
"""Inputs that a network is tried on: at two timesteps, so that an answer that forgets one shows."""


class TimedNetwork(nn.Module):
    """Takes the timestep as the last channel of its input, as everything in this package hands it.

    Args:
        network: Of pictures (N, C, H, W) and timesteps (N,), float32 and integer-valued.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, C + 1, H, W) to the noise (N, C, H, W)."""
        noise: Tensor = self.network(*without_time(inputs))
        return noise


def timed_inputs(shape: tuple[int, int, int], timesteps: int) -> Tensor:
    """Return inputs (2, C + 1, H, W) that a network is tried on: noise at two timesteps.

    Args:
        shape: (C, H, W).
        timesteps: Of the schedule.
    """
    noise = torch.randn(TRIED, *shape, generator=torch.Generator().manual_seed(0))
    return with_time(noise, torch.tensor([timesteps // 3, 2 * timesteps // 3]))


@torch.no_grad()
def puts_out_noise(network: nn.Module, inputs: Tensor) -> bool:
    """Return whether a network's answer to inputs (N, C + 1, H, W) has the shape (N, C, H, W)."""
    pictures, _ = without_time(inputs)
    answer: Tensor = network(inputs)
    return answer.shape == pictures.shape
