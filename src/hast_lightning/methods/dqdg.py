"""After DQDG (Xu et al., IEEE SPL 2024): two generators, selected samples, frames that are masked.

Only the abstract is public: a distance between the centers of two generators' samples, a selector
that keeps good ones, and a student that answers to masked samples as the teacher does to whole
ones. All formulas and constants here are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Batch, Needs, Seen
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ModelError
from hast_lightning.graph.classifier import classifier_input, feature_vectors
from hast_lightning.sources.generator import ConditionalGenerator
from hast_lightning.terms.kl import KL, kl_divergence
from hast_lightning.transforms.in_time import drawn_spans, masked


def halves(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two halves of a batch (N, ...); of an odd number the first is larger."""
    middle = (len(batch) + 1) // 2
    return batch[:middle], batch[middle:]


@part("source", "dual_generator")
class DualGenerator(ConditionalGenerator):
    """Two conditional generators: one makes the first half of a batch, the other the second.

    Both are given the same labels. Each normalizes its own half.

    Source: DQDG (Xu et al., IEEE SPL 2024), its abstract; that halves have the same labels is ours.
    """

    def build(self, site: Site) -> None:
        """Draw the weights of both, or read saved ones.

        Raises:
            DataError: the file is missing, unreadable, or of another network.
        """
        self.second = ConditionalGenerator(
            latent_dim=self.latent_dim, conditioning=self.conditioning
        )
        self.second.build(site)
        super().build(site)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return inputs (N, C, H, W) of ``noise`` (N, latent_dim) and ``labels`` (N,)."""
        noises, wanted = halves(noise), halves(labels)
        made = super().forward(noises[0], wanted[0])
        if not len(noises[1]):
            return made
        return torch.cat([made, self.second(noises[1], wanted[1])])

    def _draw(self, count: int) -> Batch:
        device = self.project.weight.device
        labels = torch.randint(self.num_classes, ((count + 1) // 2,), device=device)
        labels = torch.cat([labels, labels])[:count]
        return Batch(self(torch.randn(count, self.latent_dim, device=device), labels), labels)


def center_distances(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the distance of the centers of both halves for each class in both, (found,).

    Args:
        features: (N, width), of length 1 each.
        labels: (N,), int64.
        classes: Number of classes.
    """
    centers, found = [], []
    for some, named in zip(halves(features), halves(labels), strict=True):
        members = F.one_hot(named, classes).to(some)
        counts = members.sum(dim=0)
        centers.append(members.T @ some / counts.clamp_min(1)[:, None])
        found.append(counts > 0)
    apart = (centers[0] - centers[1])[found[0] & found[1]]
    distances: Tensor = torch.linalg.vector_norm(apart, dim=1)
    return distances


@part("term", "center_distance")
class CenterDistance(Term):
    """Keeps apart what two generators make of a class.

    ``mean over classes of max(0, m - |c - c'|)``, where ``c`` and ``c'`` are the means of the
    teacher's features, at the classifier's input and of length 1, over the samples of a class in
    the first and in the second half of the batch, as ``dual_generator`` makes them. Classes that
    one half lacks do not count.

    Source: DQDG (Xu et al., IEEE SPL 2024), its abstract; the formula is ours.
    """

    margin: float = 0.5
    """Distance from which on nothing is pushed; of vectors of length 1 at most 2."""

    title = "Distance of the centers of two generators"
    by_sample = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("margin", self.margin, 0, 2)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Ask for the classifier's input.

        Raises:
            ModelError: the teacher has no such layer.
        """
        self._node, _ = classifier_input(teacher)
        self._classes = teacher.pretrained.num_classes
        return Needs(teacher=(self._node,), labels="some")

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss; 0 where the halves have no class in common."""
        assert seen.batch.labels is not None
        features = F.normalize(feature_vectors(seen.teacher.values[self._node]), dim=1)
        found = center_distances(features, seen.batch.labels, self._classes)
        return (self.margin - found).clamp_min(0).sum() / max(len(found), 1)


def selected(logits: Tensor, labels: Tensor, threshold: float, least: float) -> Tensor:
    """Return which samples are good enough, (N,) bool.

    Those whose likeliest class is the label with a probability of ``threshold``; where they are
    fewer than ``least`` of the batch, so many of the largest probability of the label.

    Args:
        logits: The teacher's, (N, classes).
        labels: (N,), int64.
        threshold: In [0, 1].
        least: Share of the batch, at least one sample.
    """
    probabilities = logits.float().softmax(dim=1)
    of_label = probabilities.gather(1, labels[:, None]).squeeze(1)
    good = (logits.argmax(dim=1) == labels) & (of_label >= threshold)
    count = max(1, round(least * len(labels)))
    best = torch.zeros_like(good)
    best[of_label.topk(count).indices] = True
    return torch.where(good.sum() >= count, good, best)


@part("transform", "selector")
class Selector(Transform):
    """Has the student learn from samples alone that the teacher takes for their label.

    A sample counts where ``argmax T(x) = y`` and ``p_y >= threshold``; the others keep their place
    with a weight of 0.

    Source: DQDG (Xu et al., IEEE SPL 2024), its abstract; what is good enough is ours.
    """

    threshold: float = 0.8
    """Least probability of the label, which must be the likeliest class."""
    least: float = 0.75
    """Share of the batch that is kept in any case, the most probable first."""

    def __post_init__(self) -> None:
        require_range("threshold", self.threshold, 0, 1)
        require_range("least", self.least, 0, 1)

    def bind(self, teacher: Network, student: Network) -> None:
        """Remember the teacher."""
        # In a tuple, so that its layers are not registered here.
        self._teacher = (teacher,)

    @torch.no_grad()
    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the batch with weights."""
        assert batch.labels is not None
        logits = self._teacher[0].trace(batch.inputs).logits
        kept = selected(logits, batch.labels, self.threshold, self.least).to(logits)
        return batch._replace(weights=kept if batch.weights is None else kept * batch.weights)


@part("term", "masked_kl")
class MaskedKL(KL):
    """Knowledge distillation to a student that sees less: ``temperature^2 KL(T(x) || S(mask(x)))``.

    The mask is one span of frames for each sample (of pictures, of rows), with the mean of each
    coefficient over the batch in their place.

    Source: DQDG (Xu et al., IEEE SPL 2024), its abstract; span and filling are ours.
    """

    frames: int = 10
    """Largest width of the span; widths are uniform from 0."""

    title = "Distillation loss on masked samples (KL)"
    # The mean of ids is no token.
    modalities = Term.modalities
    by_sample = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("frames", self.frames, 0)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Remember the student, which sees other samples than those of the batch.

        Raises:
            ModelError: samples are not (C, frames, coefficients), or ``output`` is none of the
                network's.
        """
        if len(teacher.pretrained.input_shape) != 3:
            raise ModelError(
                f"the term {self.kind} masks frames of (C, frames, coefficients), and the network "
                f"{teacher.pretrained.name} takes {teacher.pretrained.input_shape}: choose kl"
            )
        self._student = (student,)
        return super().bind(teacher, student)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        inputs = seen.batch.inputs
        less = masked(inputs, *drawn_spans(inputs, self.frames))
        student = self._student[0].trace(less).output(self.output)
        teacher = seen.teacher.output(self.output)
        return kl_divergence(student, teacher, self.temperature, self.reduction, seen.batch.weights)
