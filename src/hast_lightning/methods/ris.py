"""After RIS (Bai et al., AAAI 2024): images whose answers survive small disturbances.

Summaries say what is disturbed and how distances are measured. No code is public; the kinds of
disturbances, their sizes and the form of the threshold are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.nn import functional as F

from hast_lightning.core.batch import Needs, Seen, weighted_mean
from hast_lightning.core.checks import require_range
from hast_lightning.core.ensemble import graphs_of
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.graph.classifier import feature_vectors, last_layer_input
from hast_lightning.graph.tracing import expose

NOISE_IMAGES = 16
NOISE_SEED = 20240220
"""Any fixed number: the threshold must not depend on the seed of the run."""


def _noisy(images: Tensor, size: float) -> Tensor:
    return images + size * torch.randn_like(images)


def _mirrored(images: Tensor, size: float) -> Tensor:
    return images.flip(-1)


def _moved(images: Tensor, size: float) -> Tensor:
    rows, columns = (int(torch.randint(3, ())) - 1 for _ in range(2))
    return images.roll((rows, columns), (-2, -1))


def _scaled(images: Tensor, size: float) -> Tensor:
    return images * (1 + size * (2 * torch.rand(()).item() - 1))


DISTURBANCES: tuple[Callable[[Tensor, float], Tensor], ...] = (_noisy, _mirrored, _moved, _scaled)
"""Of images (N, C, H, W), differentiable in them; one is drawn for a whole batch."""


def inconsistency(features: Tensor, others: Tensor, logits: Tensor, other_logits: Tensor) -> Tensor:
    """Return how much answers differ, (2, N): of features and of predictions.

    ``1 - cos(f, f')`` and ``sum over classes of |p - p'|``.

    Args:
        features: (N, C).
        others: Those after a disturbance.
        logits: (N, classes).
        other_logits: Those after it.
    """
    cosine = F.cosine_similarity(features, others, dim=1, eps=1e-6)
    moved = logits.float().softmax(dim=1) - other_logits.float().softmax(dim=1)
    return torch.stack([1 - cosine, moved.abs().sum(dim=1)])


@part("term", "robustness")
class Robustness(Term):
    """How much the teacher's answers change under disturbances, beyond a share of noise's change.

    Two disturbances: of the images, by one of noise, mirroring, a shift by a pixel and another
    contrast, drawn for each batch; and of the teacher, by Gaussian noise on its weights. For each,
    ``mean max(d - threshold t, 0)`` of features (cosine distance, at the classifier's input) and of
    predictions (L1 distance); ``t`` is the mean of ``d`` on Gaussian noise images under the same
    kind of disturbance. Where several networks teach, each is compared with itself, and the loss is
    the mean of theirs.

    Source: RIS (Bai et al., AAAI 2024) as summaries describe it; all constants, the kinds of
    disturbances, that each kind has a threshold of its own, and the hinge are ours.
    """

    image_noise: float = 0.1
    """Deviation of the noise on images, and largest change of contrast, in normalized units."""
    weight_noise: float = 0.05
    """Deviation of the noise on weights, as a share of the deviation of their tensor."""
    threshold: float = 1.0
    """What costs nothing, as a share of the change that noise images show."""

    title = "Changes of the teacher's answers under disturbances"
    parts = ("image_features", "image_predictions", "weight_features", "weight_predictions")
    of_noise: ClassVar[Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("image_noise", self.image_noise, 0)
        require_range("weight_noise", self.weight_noise, 0)
        require_range("threshold", self.threshold, 0)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the features, and measure what noise images show.

        Raises:
            ModelError: a network ends in no layer with weights.
        """
        name, graphs = teacher.pretrained.name, graphs_of(teacher)
        # In tuples and dictionaries, so that the teacher's layers are not registered here.
        self._graphs = tuple(graphs.values())
        self._nodes = [
            last_layer_input(graph, before.rstrip("/") or name)[0]
            for before, graph in graphs.items()
        ]
        self._exposed: dict[torch.device, list[fx.GraphModule]] = {}
        # The devices' streams, too: a seed is that of all of them.
        devices = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices), torch.no_grad():
            means = torch.stack([self._of_noise(teacher, m) for m in range(len(graphs))])
        self.register_buffer("of_noise", means)
        return Needs(teacher=(self._nodes[0],), batch_norms=True)

    def _of_noise(self, teacher: Network, member: int) -> Tensor:
        """Return the mean changes on noise images, (kinds of disturbances + 1, 2).

        The last is that of noise on weights. Every image has a disturbance of its own, so that
        there are many draws of each kind.
        """
        torch.manual_seed(NOISE_SEED)
        device = next(teacher.graph_module.parameters()).device
        images = torch.randn(NOISE_IMAGES, *teacher.pretrained.input_shape).to(device)
        single = torch.split(images, 1)
        disturbed = [
            torch.cat([disturb(image, self.image_noise) for image in single])
            for disturb in DISTURBANCES
        ]
        others = [self._answers(member, each) for each in disturbed]
        noisy = [self._answers(member, image, self._other_weights(member)) for image in single]
        others.append((torch.cat([f for f, _ in noisy]), torch.cat([z for _, z in noisy])))
        features, logits = self._answers(member, images)
        return torch.stack([inconsistency(features, f, logits, z).mean(dim=1) for f, z in others])

    def _answers(
        self, member: int, images: Tensor, weights: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features (N, C) and logits (N, classes), with other weights if there are some."""
        # Made anew on another device, where the graphs' own tensors are other ones.
        if images.device not in self._exposed:
            pairs = zip(self._graphs, self._nodes, strict=True)
            self._exposed = {images.device: [expose(graph, (node,)) for graph, node in pairs]}
        exposed = self._exposed[images.device][member]
        logits, (values,) = functional_call(exposed, weights or {}, (images,))
        return feature_vectors(values), logits

    def _other_weights(self, member: int) -> dict[str, Tensor]:
        return {
            name: weight + self.weight_noise * weight.std() * torch.randn_like(weight)
            for name, weight in self._graphs[member].named_parameters()
            if weight.dim() > 1
        }

    def _undisturbed(self, seen: Seen, member: int) -> tuple[Tensor, Tensor]:
        """Return features (N, C) and logits (N, classes) as they are."""
        if len(self._graphs) > 1:  # the teacher's logits are those of all together
            return self._answers(member, seen.batch.inputs)
        return feature_vectors(seen.teacher.values[self._nodes[0]]), seen.teacher.logits

    def forward(self, seen: Seen) -> Tensor:
        """Return the four losses, (4,)."""
        images = seen.batch.inputs
        kind = int(torch.randint(len(DISTURBANCES), ()))
        disturbed = DISTURBANCES[kind](images, self.image_noise)
        losses = []
        for member, of_noise in enumerate(self.of_noise):
            features, logits = self._undisturbed(seen, member)
            others = (
                self._answers(member, disturbed),
                self._answers(member, images, self._other_weights(member)),
            )
            found = torch.cat([inconsistency(features, f, logits, z) for f, z in others])
            allowed = torch.cat([of_noise[kind], of_noise[-1]])
            excess = (found - self.threshold * allowed[:, None]).clamp_min(0)
            losses.append([weighted_mean(each, seen.batch.weights) for each in excess])
        return torch.stack([torch.stack(each) for each in losses]).mean(dim=0)
