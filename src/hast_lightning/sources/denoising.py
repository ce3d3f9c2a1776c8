"""Points of a denoising network's own sampling runs: what it will meet, without any data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.core.diffusion import SPACINGS, UNIFORM, Sampler, spread_evenly
from hast_lightning.core.network import DIFFUSION, PretrainedNetwork
from hast_lightning.core.part import part
from hast_lightning.core.source import HELD_OUT_SEED, Site, Source
from hast_lightning.errors import ConfigurationError

EVEN, LAST = "uniform", "last"
CHOICES = (EVEN, LAST)


@dataclass(eq=False, repr=False, kw_only=True)
class SamplingRuns(Source):
    """Base class: inputs ``(x_t, t)`` of sampling runs of the full-precision network (DDIM).

    Each run gives one point. The points are made when the first is asked for, and are in every
    checkpoint from then on.

    Source: Q-Diffusion (Li et al., ICCV 2023, section 3); one point a run is EDA-DM's (Liu et al.,
    arXiv 2401.04585).
    """

    samples: int = 1024
    """Points, each of a sampling run of its own."""
    held_out_samples: int = 128
    """Points that nothing trains on, of other runs, which the result is measured on."""
    steps: int = 100
    """Steps of the sampler."""
    spacing: str = UNIFORM
    """Timesteps that the sampler visits: ``uniform``, or ``quadratic``, closer at the end."""
    eta: float = 0.0
    """Noise that each step of the sampler adds: 0 none (DDIM), 1 as in DDPM."""
    runs_at_once: int = 64
    """Sampling runs that go through the network together."""

    label_kind = "none"
    modalities = (DIFFUSION,)

    points: ClassVar[Tensor]

    def __post_init__(self) -> None:
        require_range("samples", self.samples, 1)
        require_range("held_out_samples", self.held_out_samples, 1)
        require_range("steps", self.steps, 2)
        require_choice("spacing", self.spacing, SPACINGS)
        require_range("eta", self.eta, 0, 1)
        require_range("runs_at_once", self.runs_at_once, 1)
        if self.load is not None:
            raise ConfigurationError(
                f"load={self.load}: points of sampling runs are made in the run; leave load out"
            )

    def build(self, site: Site) -> None:
        """Make room for the points.

        Raises:
            ConfigurationError: the network takes no timestep, or has fewer than ``steps``.
        """
        super().build(site)
        network = site.pretrained
        if network.modality != DIFFUSION or network.alpha_bar is None:
            raise ConfigurationError(
                f"{site.key}={self.kind} makes noisy pictures with their timestep, and the network "
                f"{network.name} takes {network.modality}; choose another source"
            )
        if self.steps >= len(network.alpha_bar):
            raise ConfigurationError(
                f"{site.key}.steps={self.steps}: the network {network.name} has "
                f"{len(network.alpha_bar)} timesteps, and a sampler skips some"
            )
        self.sampler = Sampler(network.alpha_bar, self.steps, self.eta, self.spacing)
        self.register_buffer("points", torch.zeros(self.samples, *network.input_shape))
        self._made, self._held = False, torch.zeros(0)

    @property
    def most(self) -> int:
        """Return how many points there are."""
        return self.samples

    def chosen_steps(self, network: PretrainedNetwork, device: torch.device) -> Tensor:
        """Return how many points each step of the sampler gives, (steps,) int64.

        Args:
            network: On the device.
            device: That samples are made on.
        """
        return spread_evenly(self.samples, len(self.sampler.times))

    def sample(self, count: int) -> Batch:
        """Return ``count`` of the points, drawn with replacement: (count, C + 1, H, W)."""
        self._make()
        index = torch.randint(self.samples, (count,))
        return Batch(self.points[index.to(self.points.device)])

    def collect(self, count: int) -> Batch:
        """Return the first ``count`` points, which are in no order of time."""
        self._make()
        return Batch(self.points[: max(count, 0)])

    def held_out(self, count: int) -> Batch:
        """Return at most ``count`` points of other runs, at uniform steps, always the same."""
        if not len(self._held):
            even = spread_evenly(self.held_out_samples, len(self.sampler.times))
            self._held = self._run(_shuffled(even, HELD_OUT_SEED), HELD_OUT_SEED)
        return Batch(self._held[: max(count, 0)].to(self.points.device))

    @torch.no_grad()
    def _make(self) -> None:
        if self._made:
            return
        seed = int(torch.randint(2**31, ()))
        counts = self.chosen_steps(self._network(), self.points.device)
        self.points.copy_(self._run(_shuffled(counts, seed), seed))
        self._made = True

    def _run(self, steps: Tensor, seed: int) -> Tensor:
        network, device = self._network(), self.points.device
        shape = network.input_shape
        return self.sampler.points(network.network, shape, steps, seed, self.runs_at_once, device)

    def _network(self) -> PretrainedNetwork:
        self.site.pretrained.network.to(self.points.device)
        return self.site.pretrained

    def get_extra_state(self) -> dict[str, Any]:
        """Return whether the points were made, for ``state_dict``."""
        return {"made": self._made}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self._made = bool(state["made"])

    def own_state(self) -> dict[str, Any]:
        """Return the points of this rank, once they are made."""
        return {"points": self.points.cpu()} if self._made else {}

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        if "points" in state:
            self.points.copy_(state["points"])
            self._made = True


def _shuffled(counts: Tensor, seed: int) -> Tensor:
    """Return the step of each point, (N,), in any order: ``counts`` of each."""
    steps = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return steps[torch.randperm(len(steps), generator=torch.Generator().manual_seed(seed))]


@part("source", "sampling_runs")
class PlainSamplingRuns(SamplingRuns):
    """Inputs ``(x_t, t)`` of the network's own sampling runs, at steps that are as frequent.

    Source: Q-Diffusion (Li et al., ICCV 2023, section 3).
    """

    timesteps: str = EVEN
    """Steps that points are taken at: ``uniform``, all alike; ``last``, the last one alone, which
    shows what the choice is worth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("timesteps", self.timesteps, CHOICES)

    def chosen_steps(self, network: PretrainedNetwork, device: torch.device) -> Tensor:
        """Return as many points for each step, or all for the last."""
        even = super().chosen_steps(network, device)
        if self.timesteps == EVEN:
            return even
        alone = torch.zeros_like(even)
        alone[-1] = self.samples
        return alone
