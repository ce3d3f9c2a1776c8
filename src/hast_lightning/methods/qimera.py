"""Qimera (Choi et al., NeurIPS 2021): images between classes, of superposed label embeddings.

Code and paper differ in two things, and both are settings: whether the table of embeddings trains,
and whether a linear layer lies between the embeddings and their mixture.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.core.part import part
from hast_lightning.graph.classifier import classifier_rows
from hast_lightning.sources.generator import ConditionalGenerator, with_one_hot

STARTS = ("random", "classifier")
EPSILON = 1e-5
"""What is added to variances before their root is taken, as BatchNorm does."""


def standardized(codes: Tensor) -> Tensor:
    """Return codes with mean 0 and variance 1, the variance biased.

    Args:
        codes: (N, D), each standardized over its own numbers; or (N, K, D), each of the K
            positions standardized over batch and numbers.
    """
    places = (1,) if codes.dim() == 2 else (0, 2)
    variance, mean = torch.var_mean(codes, dim=places, correction=0, keepdim=True)
    return (codes - mean) / (variance + EPSILON).sqrt()


def soft_labels(labels: Tensor, shares: Tensor, classes: int) -> Tensor:
    """Return ``sum_k shares_k * onehot(labels_k)``, (N, classes), of ``labels`` (N, K)."""
    return torch.einsum("nk,nkc->nc", shares, F.one_hot(labels, classes).to(shares.dtype))


@part("source", "superposed_generator")
class SuperposedGenerator(ConditionalGenerator):
    """A conditional generator whose batches are at times of mixed labels (Qimera).

    An image is made of a label's embedding plus noise, standardized. With a probability a whole
    batch is of ``mixed_labels`` such codes an image, each with noise of its own, in shares
    ``softmax(N(0, I))``; labels are drawn with replacement. The targets are the same mixture of
    one-hot labels. With class-conditional BatchNorm its scales and shifts are mixed, too.

    Source: Choi et al., NeurIPS 2021, arXiv 2111.02625, released code.
    """

    mix_probability: float = 0.4
    """Probability that a batch is of mixed labels."""
    mixed_labels: int = 2
    """Labels that an image of such a batch is mixed of (the paper's K)."""
    start: str = "random"
    """What the embeddings start from: ``random``, or the rows of the ``classifier``, whose width
    then is that of the noise."""
    trained: bool = True
    """The embeddings train, as in the released commands; false: they stay, as in the paper."""
    mapping: int | None = None
    """Width of a linear layer in front of the mixture (disentanglement mapping): 100 in the paper;
    null: none, as in the released commands."""

    label_kind: ClassVar[str] = "soft"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("mix_probability", self.mix_probability, 0, 1)
        require_range("mixed_labels", self.mixed_labels, 1)
        require_choice("start", self.start, STARTS)
        if self.mapping is not None:
            require_range("mapping", self.mapping, 1)

    def unused(self) -> Collection[str]:
        """Return the width of the noise where the classifier says it."""
        return ("latent_dim",) if self.start == "classifier" else ()

    def _embed(self) -> int:
        rows = classifier_rows(self.site.pretrained) if self.start == "classifier" else None
        if rows is not None:
            # The run has a copy of the settings.
            self.latent_dim = rows.shape[1]
        self.embedding = nn.Embedding(self.num_classes, self.latent_dim, _weight=rows)
        self.embedding.requires_grad_(self.trained)
        if self.mapping is None:
            return self.latent_dim
        self.map = nn.Linear(self.latent_dim, self.mapping)
        return self.mapping

    def _codes(self, noise: Tensor, labels: Tensor) -> Tensor:
        codes = standardized(self.embedding(labels) + noise)
        if self.mapping is not None:
            codes = self.map(codes)
        return codes

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return images (N, C, H, W) of one label each, of ``noise`` (N, latent_dim)."""
        return self._images(self._codes(noise, labels), labels)

    def superpose(self, noise: Tensor, labels: Tensor, shares: Tensor) -> Batch:
        """Return images of K labels each, and soft labels.

        Args:
            noise: (N, K, latent_dim).
            labels: (N, K), int64.
            shares: (N, K), adding up to one over K.
        """
        codes = torch.einsum("nk,nkd->nd", shares, self._codes(noise, labels))
        targets = soft_labels(labels, shares, self.num_classes)
        return Batch(self._images(codes, targets), targets)

    def _draw(self, count: int) -> Batch:
        # The coin is tossed on the CPU, so that no GPU has to be waited for.
        if torch.rand(()).item() >= self.mix_probability:
            return with_one_hot(super()._draw(count), self.num_classes)
        shape, device = (count, self.mixed_labels), self.project.weight.device
        noise = torch.randn(*shape, self.latent_dim, device=device)
        labels = torch.randint(self.num_classes, shape, device=device)
        return self.superpose(noise, labels, torch.randn(shape, device=device).softmax(dim=1))
