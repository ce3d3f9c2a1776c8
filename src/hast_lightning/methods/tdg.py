"""After TDG (Luo et al., TCSVT 2024): images that the student has not come close to yet.

Only the abstract is public: the smaller the discrepancy of teacher and student on a sample, the
stronger it is pushed, by a Gaussian margin; and synthetic images are interpolated over time. The
formulas here, and that snapshots of the generator make a share of the samples, are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector
from torch.optim import Optimizer

from hast_lightning.core.batch import Batch, Needs, Seen, weighted_mean
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import TOKENS, Network
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.sources.generator import ConditionalGenerator


def discrepancy(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return the mean absolute difference of logits (N, classes), each without its mean, (N,)."""
    difference = teacher_logits.float() - student_logits.float()
    return (difference - difference.mean(dim=1, keepdim=True)).abs().mean(dim=1)


@part("term", "gaussian_margin")
class GaussianMargin(Term):
    """Pushes teacher and student apart on images, most where they are closest.

    ``-mean exp(-d^2 / (2 width^2)) d`` of the discrepancy ``d`` of their logits; the factor has no
    gradient, so that it alone says how strong a push is: from 1 at no discrepancy to 0.

    Source: the abstract of TDG (Luo et al., TCSVT 2024); the formula is ours.
    """

    width: float = 1.0
    """Discrepancy of logits at which a push has 0.61 of its strength."""

    title = "Discrepancy within a Gaussian margin"
    modalities = (*Term.modalities, TOKENS)
    needs = Needs(student=())

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("width", self.width, 0, open_minimum=True)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss, which is not positive."""
        assert seen.student is not None
        found = discrepancy(seen.teacher.logits, seen.student.logits)
        strength = torch.exp(-found.detach().square() / (2 * self.width**2))
        return -weighted_mean(strength * found, seen.batch.weights)


@part("transform", "blend_over_time")
class BlendOverTime(Transform):
    """Blends each image with the one in its place a step ago: ``s x + (1 - s) x_former``.

    ``s`` is uniform in ``[lowest, 1]``, drawn for each image. The targets stay. Where the former
    batch had another size, and in the first step, images stay as they are.

    Source: the abstract of TDG (Luo et al., TCSVT 2024); shares and pairs are ours.
    """

    lowest: float = 0.5
    """Least share of the image itself."""

    def __post_init__(self) -> None:
        require_range("lowest", self.lowest, 0, 1)

    def bind(self, teacher: Network, student: Network) -> None:
        """Begin without a former batch."""
        self._former: Tensor | None = None

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the blended batch."""
        images, former = batch.inputs, self._former
        # A copy: a source may change its images in place.
        self._former = images.detach().clone()
        if former is None or former.shape != images.shape:
            return batch
        drawn = torch.rand(len(images), *[1] * (images.dim() - 1), device=images.device)
        shares = (self.lowest + (1 - self.lowest) * drawn).to(images.dtype)
        former = former.to(images.device, images.dtype)
        return batch._replace(inputs=torch.lerp(former, images, shares))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the former batch, for ``state_dict``."""
        return {"former": self._former}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self._former = state["former"]


@part("source", "snapshot_generator")
class SnapshotGenerator(ConditionalGenerator):
    """A conditional generator whose former states make a share of the samples.

    Every ``every`` steps its weights are kept, those of the last ``kept`` times. The student sees
    fresh samples: each is made by a kept state with the probability ``share``, else by the
    generator as it is now. The labels are the same for both. Checkpoints and files hold all kept
    states, which for 224 pixels are 160 MB each.

    Source: TDG (Luo et al., TCSVT 2024), whose abstract speaks of diversity over time; which states
    are kept, and what is done with them, is ours.
    """

    every: int = 100
    """Steps of the generator from one snapshot to the next."""
    kept: int = 3
    """Snapshots that are kept, the latest ones."""
    share: float = 0.25
    """Share of the samples that a snapshot makes."""

    hands_on = False
    snapshots: ClassVar[Tensor]
    done: ClassVar[Tensor]
    taken: ClassVar[Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("every", self.every, 1)
        require_range("kept", self.kept, 1)
        require_range("share", self.share, 0, 1)

    def _make(self, site: Site) -> None:
        super()._make(site)
        weights = sum(weight.numel() for weight in self.parameters())
        self.register_buffer("snapshots", torch.zeros(self.kept, weights))
        for name in ("done", "taken"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def improved(self, loss: float, optimizers: Mapping[str, Optimizer]) -> Batch | None:
        """Take a snapshot where it is time."""
        self.done.add_(1)
        if int(self.done) % self.every == 0:
            weights = parameters_to_vector(self.parameters())
            self.snapshots.copy_(torch.cat([weights[None], self.snapshots[:-1]]))
            self.taken.add_(1)
        return super().improved(loss, optimizers)

    @torch.no_grad()
    def sample(self, count: int) -> Batch:
        """Return fresh images (count, C, H, W), some of a former state, and their labels."""
        batch = super().sample(count)
        taken = min(int(self.taken), self.kept)
        if not taken or not self.share:
            return batch
        images = batch.inputs
        noise = torch.randn(count, self.latent_dim, device=images.device)
        weights = self._weights(self.snapshots[int(torch.randint(taken, ()))])
        with self._untraced():
            former: Tensor = functional_call(self, weights, (noise, batch.targets))
        chosen = torch.rand(count, device=images.device) < self.share
        chosen = chosen.view(-1, *[1] * (images.dim() - 1))
        return batch._replace(inputs=torch.where(chosen, former, images))

    def _weights(self, snapshot: Tensor) -> dict[str, Tensor]:
        """Return a snapshot by the names of the weights."""
        named = dict(self.named_parameters())
        parts = torch.split(snapshot, [weight.numel() for weight in named.values()])
        pairs = zip(named.items(), parts, strict=True)
        return {name: part.view_as(weight) for (name, weight), part in pairs}

    def _shape_header(self) -> dict[str, str]:
        return {**super()._shape_header(), "kept": str(self.kept)}
