"""A conditional generator whose images have labels that name other classes, too."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.graph.classifier import classifier_rows
from hast_lightning.sources.generator import ConditionalGenerator

MOST_MASS = 0.49
"""Less than half, so that the label of an image stays its likeliest class."""
CHOICES = ("coin", "margin")


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probability of each sample's own class less the largest other one, (N,).

    Near 1 where the class is beyond doubt, negative where another one is likelier.

    Args:
        logits: (N, classes), of at least two classes.
        labels: (N,), int64.
    """
    probabilities = logits.float().softmax(dim=1)
    own = labels[:, None]
    others = probabilities.scatter(1, own, float("-inf"))
    return probabilities.gather(1, own)[:, 0] - others.amax(dim=1)


def smallest(values: Tensor, share: float) -> Tensor:
    """Return which ``round(share * N)`` values (N,) are the smallest; of equal ones the first."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.argsort(stable=True)[: round(share * len(values))]] = True
    return chosen


def soft_label_table(rows: Tensor, mass: float, group: int, *, similar: bool) -> Tensor:
    """Return the soft label of each class, (classes, classes).

    ``1 - mass`` for the class itself, and ``mass`` in equal parts for the classes whose rows have
    the largest dot products with its own, or the smallest.

    Args:
        rows: The classifier's, (classes, features).
        mass: In [0, 1].
        group: Other classes in a label; at most all.
        similar: Those of the largest dot products; else of the smallest.
    """
    classes = len(rows)
    count = min(group, classes - 1)
    products = rows @ rows.T
    products.fill_diagonal_(float("-inf") if similar else float("inf"))
    others = products.topk(count, dim=1, largest=similar).indices
    table = (1 - mass) * torch.eye(classes)
    return table.scatter(1, others, mass / count)


@part("source", "soft_label_generator")
class SoftLabelGenerator(ConditionalGenerator):
    """A conditional generator with soft labels over a group of classes for a share of the images.

    A group is what the teacher's classifier finds alike, by the dot products of its rows, or least
    alike. The other images have one-hot labels. Images are conditioned on their own class alone.
    The share is chosen by a coin, or it is the hard images of each batch: those for which the
    teacher's margin is smallest, the probability of their own class less the largest other one.
    Several processes choose from their own batches.

    Source: similar classes after DynaDFQ (Hong et al., WACV 2025, abstract), dissimilar ones after
    RIS (Bai et al., AAAI 2024, summaries); the margin, equal parts and all constants are ours.
    """

    mass: float = 0.1
    """What a soft label gives to other classes, in equal parts."""
    group: int = 3
    """Other classes in a soft label."""
    similar: bool = True
    """Take the classes that are most alike; false: those that are least alike."""
    share: float = 1.0
    """Share of the images that have soft labels."""
    chosen_by: str = "coin"
    """Images of the share: those that a ``coin`` falls on, or those of the smallest ``margin``."""

    label_kind: ClassVar[str] = "soft"
    table: ClassVar[Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("mass", self.mass, 0, MOST_MASS)
        require_range("group", self.group, 1)
        require_range("share", self.share, 0, 1)
        require_choice("chosen_by", self.chosen_by, CHOICES)

    def build(self, site: Site) -> None:
        """Make the labels and draw the weights, or read a saved generator.

        Raises:
            ConfigurationError: the network has one class, so that a label has no other to name.
            DataError: the file is missing, unreadable, or of another network.
            ModelError: the network has no classifier with a row for each class.
        """
        super().build(site)
        if self.num_classes < 2:
            raise ConfigurationError(
                f"{site.key}={self.kind}: the network {site.pretrained.name} has one class, and "
                "soft labels name others, too"
            )
        rows = classifier_rows(site.pretrained).cpu()
        table = soft_label_table(rows, self.mass, self.group, similar=self.similar)
        # It follows from the network and the settings.
        self.register_buffer("table", table, persistent=False)

    def _draw(self, count: int) -> Batch:
        batch = super()._draw(count)
        assert batch.targets is not None
        soft = self._chosen(batch.inputs, batch.targets)
        plain = F.one_hot(batch.targets, self.num_classes).float()
        return batch._replace(targets=torch.where(soft[:, None], self.table[batch.targets], plain))

    @torch.no_grad()
    def _chosen(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return which images (N, C, H, W) with labels (N,) have soft ones, (N,)."""
        if self.chosen_by == "coin":
            return torch.rand(len(labels), device=labels.device) < self.share
        network = self.site.pretrained.network.to(images.device)
        return smallest(margins(network(images), labels), self.share)
