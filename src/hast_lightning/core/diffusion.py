"""Diffusion models: noise schedules, inputs with their timestep, and sampling by DDIM.

A denoising network takes a noisy picture and the number of its timestep. Everywhere in this package
both are one tensor (N, C + 1, H, W): the last channel is the timestep, the same at every position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

UNIFORM, QUADRATIC = "uniform", "quadratic"
SPACINGS = (UNIFORM, QUADRATIC)
LARGEST_BETA = 0.999
COSINE_OFFSET = 0.008
"""Of the cosine schedule: s of Nichol and Dhariwal."""

Denoiser = Callable[[Tensor], Tensor]
"""From inputs with their timestep (N, C + 1, H, W) to the noise in them (N, C, H, W)."""


def with_time(pictures: Tensor, times: Tensor) -> Tensor:
    """Return pictures (N, C, H, W) with their timesteps (N,) as one more channel."""
    plane = times.to(pictures).view(-1, 1, 1, 1).expand(-1, 1, *pictures.shape[2:])
    return torch.cat([pictures, plane], dim=1)


def without_time(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pictures (N, C, H, W) and timesteps (N,) of inputs (N, C + 1, H, W)."""
    return inputs[:, :-1], inputs[:, -1, 0, 0]


def linear_alpha_bar(steps: int) -> Tensor:
    """Return the share of the signal's variance at each timestep, (steps,), of linear betas.

    Source: Ho et al., NeurIPS 2020 (1e-4 to 0.02 at 1,000 steps, as many times larger at fewer).
    """
    first, last = (end * 1000 / steps for end in (1e-4, 0.02))
    betas = torch.linspace(first, last, steps, dtype=torch.float64).clamp(max=LARGEST_BETA)
    return _product(betas)


def cosine_alpha_bar(steps: int) -> Tensor:
    """Return the same, (steps,), of the cosine schedule.

    Source: Nichol and Dhariwal, ICML 2021, equation 17.
    """
    part = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((part + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).square()
    return _product((1 - f[1:] / f[:-1]).clamp(max=LARGEST_BETA))


def _product(betas: Tensor) -> Tensor:
    alpha_bar: Tensor = (1 - betas).cumprod(0).float()
    return alpha_bar


def sampler_times(count: int, steps: int, spacing: str = UNIFORM) -> Tensor:
    """Return the timesteps that a sampler visits, int64, falling from the last one.

    Args:
        count: Timesteps of the schedule, which are 0 to ``count - 1``.
        steps: Steps of the sampler, below ``count``; of quadratic spacing some may coincide, and
            are visited once.
        spacing: ``uniform``, or ``quadratic``: closer together at the end (Song et al., ICLR 2021).
    """
    part = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    part = part.square() if spacing == QUADRATIC else part
    times: Tensor = torch.unique((part * (count - 1)).round().long()).flip(0)
    return times


def add_noise(pictures: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return ``sqrt(a) x + sqrt(1 - a) e``, of the shape of both; ``a`` broadcasts against them."""
    noisy: Tensor = alpha_bar.sqrt() * pictures + (1 - alpha_bar).sqrt() * noise
    return noisy


def ddim_step(
    pictures: Tensor, noise: Tensor, now: Tensor, then: Tensor, fresh: Tensor | None, eta: float
) -> Tensor:
    """Return the pictures one step of the sampler further.

    Source: DDIM (Song et al., ICLR 2021), equations 12 and 16.

    Args:
        pictures: ``x_t``, (N, C, H, W).
        noise: The network's prediction for them, likewise.
        now: ``alpha_bar`` at their timestep, a scalar.
        then: ``alpha_bar`` at the next one; 1 behind the last.
        fresh: Noise (N, C, H, W), where ``eta`` is not 0.
        eta: 0: nothing is drawn; 1: as in DDPM.
    """
    clean = (pictures - (1 - now).sqrt() * noise) / now.sqrt()
    sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).clamp(min=0).sqrt()
    moved = then.sqrt() * clean + (1 - then - sigma.square()).clamp(min=0).sqrt() * noise
    return moved if fresh is None else moved + sigma * fresh


class Sampler(NamedTuple):
    """How a denoising network is sampled from.

    Attributes:
        alpha_bar: (timesteps,), falling.
        steps: Steps of the sampler.
        eta: As of :func:`ddim_step`.
        spacing: As of :func:`sampler_times`.
    """

    alpha_bar: Tensor
    steps: int = 25
    eta: float = 0.0
    spacing: str = UNIFORM

    @property
    def times(self) -> Tensor:
        """Return the timesteps that are visited, falling, int64."""
        return sampler_times(len(self.alpha_bar), self.steps, self.spacing)

    def start(self, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return noise (count, C, H, W) to begin with, for inputs of ``shape`` (C + 1, H, W)."""
        return torch.randn(count, shape[0] - 1, *shape[1:], generator=generator)

    @torch.no_grad()
    def walk(
        self,
        network: Denoiser,
        noise: Tensor,
        generator: torch.Generator | None = None,
        leave: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yield what the network is shown at each step, (N, C + 1, H, W), and the end (N, C, H, W).

        Args:
            network: What denoises.
            noise: (N, C, H, W), on the network's device.
            generator: On the CPU, where ``eta`` is not 0.
            leave: (N,), the step at which each picture is given for the last time; none: the end.
        """
        times, pictures = self.times, noise
        for step, time in enumerate(times.tolist()):
            shown = with_time(pictures, torch.full((len(pictures),), float(time)))
            yield shown
            if leave is not None:
                stays = leave > step
                leave, kept = leave[stays], stays.to(shown.device)
                pictures, shown = pictures[kept], shown[kept]
            if not len(pictures):
                return
            fresh = None
            if self.eta:
                fresh = torch.randn(pictures.shape, generator=generator).to(pictures)
            last = step + 1 == len(times)
            then = torch.ones(()) if last else self.alpha_bar[times[step + 1]]
            now = self.alpha_bar[time].to(pictures)
            pictures = ddim_step(pictures, network(shown), now, then.to(pictures), fresh, self.eta)
        yield pictures

    def sample(
        self, network: Denoiser, noise: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return pictures (N, C, H, W) made of ``noise`` (N, C, H, W)."""
        *_, pictures = self.walk(network, noise, generator)
        return pictures

    def points(
        self,
        network: Denoiser,
        shape: tuple[int, ...],
        steps: Tensor,
        seed: int,
        at_once: int = 64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return one point of a run of its own for each of ``steps``: (N, C + 1, H, W).

        Args:
            network: What denoises.
            shape: (C + 1, H, W).
            steps: (N,) int64, the step of the sampler that each point is taken at, from 0.
            seed: Of all random numbers; the points are a function of it, and not of the device.
            at_once: Runs that go through the network together.
            device: Of the network.
        """
        generator = torch.Generator().manual_seed(seed)
        found = []
        for wanted in torch.split(steps, at_once):
            noise = self.start(len(wanted), shape, generator).to(device)
            points = noise.new_empty(len(wanted), *shape)
            places = torch.arange(len(wanted))
            for step, shown in enumerate(self.walk(network, noise, generator, wanted)):
                here = wanted[places] == step
                points[places[here].to(device)] = shown[here.to(device)]
                places = places[~here]
                if not len(places):
                    break
            found.append(points)
        return torch.cat(found)


def spread_evenly(count: int, steps: int) -> Tensor:
    """Return how many of ``count`` points each of ``steps`` steps gets, as equal as may be."""
    ends = torch.arange(steps + 1) * count // steps
    return ends.diff()
