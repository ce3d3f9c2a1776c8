"""IntraQ (Zhong et al., CVPR 2022): synthetic images of one class that differ from each other.

Formulas and constants as the authors' released code has them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Batch, Needs, Seen, weighted_mean
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.graph.classifier import classifier_input, feature_vectors

BATCH_STRIDE = 7_368_787
"""A prime, so that the draws of one batch are not those of another batch on another rank."""
AT_ONCE = 64
"""Finished images that go through the teacher together."""


def soft_target_loss(
    logits: Tensor, labels: Tensor, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the mean of ``(p_y - t)^2``, a scalar.

    Args:
        logits: The teacher's, (N, classes).
        labels: (N,), int64.
        targets: ``t`` of each sample, (N,).
        weights: Of the samples, (N,); none: all alike.
    """
    probabilities = F.softmax(logits.float(), dim=1)
    of_label = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    return weighted_mean((of_label - targets).square(), weights)


def margin_losses(
    features: Tensor, centers: Tensor, lower: float, upper: float, weights: Tensor
) -> Tensor:
    """Return the means of ``max(lower - d, 0)`` and ``max(d - upper, 0)``, (2,).

    ``d = 1 - cos`` is the distance of a feature to the center of its class.

    Args:
        features: (N, C).
        centers: Of each sample's class, (N, C).
        lower: Least distance, in [0, 2].
        upper: Greatest distance, in [0, 2].
        weights: Of the samples, (N,); zero where the class has no center.
    """
    distance = 1 - F.cosine_similarity(features.float(), centers, dim=1, eps=1e-6)
    hinges = (lower - distance).clamp_min(0), (distance - upper).clamp_min(0)
    return torch.stack([weighted_mean(hinge, weights) for hinge in hinges])


@part("term", "soft_target")
class SoftTarget(Term):
    """Mean of ``(p_y - t)^2``: how sure of its label the teacher is to be, image by image.

    ``t`` is drawn when an image is begun and stays: uniform in ``[lowest, 1]`` for a share of the
    images, 1 for the others.

    Source: IntraQ (Zhong et al., CVPR 2022), soft inception loss, as released.
    """

    lowest: float = 0.95
    """Least probability that the teacher is to give the label."""
    share: float = 0.5
    """Probability that an image has a target below 1."""

    title = "Soft target loss"
    batches: ClassVar[Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("lowest", self.lowest, 0, 1)
        require_range("share", self.share, 0, 1)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Ask for hard labels, and to be told when images are finished."""
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        return Needs(labels="hard", finished=True)

    def finished(self, batch: Batch) -> None:
        """Have new targets for the images that are begun now."""
        self.batches.add_(1)

    def targets(self, count: int) -> Tensor:
        """Return the targets of the images under way, (count,).

        They follow from the run's seed on this rank and the number of batches finished, so that a
        resumed run has the same on every rank, and other random numbers are left as they are.
        """
        seed = torch.initial_seed() + BATCH_STRIDE * int(self.batches)
        stream = torch.Generator().manual_seed(seed % 2**63)
        position, coin = torch.rand(2, count, generator=stream)
        drawn: Tensor = self.lowest + (1 - self.lowest) * position
        return drawn.masked_fill(coin >= self.share, 1.0)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss of the teacher's logits."""
        labels = seen.batch.targets
        assert labels is not None
        targets = self.targets(len(labels)).to(labels.device)
        return soft_target_loss(seen.teacher.logits, labels, targets, seen.batch.weights)


@part("term", "class_margin")
class ClassMargin(Term):
    """Keeps features within a ring around the mean of their class: neither alike nor far off.

    The mean is that of the finished images of the class as they are without crops, so the images
    of the first batch have none and the term is zero. It does not move with the images under way.

    Source: IntraQ (Zhong et al., CVPR 2022), marginal distance constraint, as released.
    """

    lower: float = 0.05
    """Cosine distance to the mean below which a feature is pushed away from it."""
    upper: float = 0.8
    """Cosine distance to the mean above which a feature is drawn to it."""

    title = "Margins to the class means"
    parts = ("lower", "upper")
    by_sample = False
    sums: ClassVar[Tensor]
    counts: ClassVar[Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("lower", self.lower, 0, 2)
        require_range("upper", self.upper, self.lower, 2)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the features, which are what the last layer takes in.

        Raises:
            ModelError: the last layer takes in neither feature vectors nor feature maps.
        """
        self._node, width = classifier_input(teacher)
        # In a tuple, so that the teacher's layers are not registered here.
        self._teacher = (teacher,)
        classes = teacher.pretrained.num_classes
        self.register_buffer("sums", torch.zeros(classes, width))
        self.register_buffer("counts", torch.zeros(classes))
        return Needs(teacher=(self._node,), labels="hard", finished=True)

    @torch.no_grad()
    def finished(self, batch: Batch) -> None:
        """Take the features of finished images into the means of their classes."""
        for some in batch.split(AT_ONCE):
            assert some.targets is not None
            values = self._teacher[0].trace(some.inputs, (self._node,)).values[self._node]
            member = F.one_hot(some.targets, len(self.counts)).float()
            # A product and no index_add_, which adds in random order on a GPU.
            with torch.autocast(member.device.type, enabled=False):
                self.sums.add_(member.T @ feature_vectors(values))
            self.counts.add_(member.sum(dim=0))

    def forward(self, seen: Seen) -> Tensor:
        """Return the losses of both margins, (2,); zero for classes without a mean."""
        labels, weights = seen.batch.targets, seen.batch.weights
        assert labels is not None
        means = self.sums / self.counts.clamp_min(1).unsqueeze(1)
        counted = (self.counts > 0).float()[labels]
        weights = counted if weights is None else counted * weights
        features = feature_vectors(seen.teacher.values[self._node])
        return margin_losses(features, means[labels], self.lower, self.upper, weights)
