"""Pictures, histograms and the table of layers: what a run shows beside numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from hast_lightning.core.batch import Answers
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.quantization.diagnosis import ACTIVATION, WEIGHT, LayerDiagnosis
from hast_lightning.records.grid import DRAWN_CHANNELS, draw_grid
from hast_lightning.records.spectrogram import as_pictures
from hast_lightning.terms.cross_entropy import difficulties, difficulty, most_frequent
from hast_lightning.tracking.axes import SAMPLES

HISTOGRAM_BINS = 32
"""Bins between 0 and 1: always the same, so that histograms of different steps compare."""
LAYER_COLUMNS = ("layer", "kind", "bits", "low", "high", "scale", "error")


@dataclass(frozen=True)
class Media:
    """Pictures, histograms and layers of one moment, for a logger to show.

    Attributes:
        pictures: By the name that a metric would have.
        histograms: Values in [0, 1], (N,), by name.
        layers: Empty where the student is not of interest.
        ends_stage: The moment is the end of a stage: what is large is shown then alone.
    """

    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    histograms: Mapping[str, Tensor] = field(default_factory=dict)
    layers: Sequence[LayerDiagnosis] = ()
    ends_stage: bool = True

    def __bool__(self) -> bool:
        """Return whether there is anything to show."""
        return bool(self.pictures or self.histograms or self.layers)


@runtime_checkable
class MediaLogger(Protocol):
    """A logger that shows more than numbers."""

    def log_media(self, media: Media, iteration: int) -> None:
        """Show ``media`` at the place of ``iteration`` (from 0)."""
        ...


@dataclass(frozen=True)
class Samples:
    """Synthetic images and what the teacher makes of them.

    Attributes:
        images: (N, C, H, W) as the network takes them; pictures of one or three channels are drawn.
        labels: (N,) int64.
        teacher_logits: (N, classes).
    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor


def sample_pictures(samples: Samples, network: PretrainedNetwork) -> dict[str, Image.Image]:
    """Return the grid of images, from easy to hard; none of images that have no color.

    Args:
        samples: What to draw, all of it.
        network: Says how they are shown.
    """
    images, mean, std = as_pictures(samples.images, network)
    if images.dim() != 4 or images.shape[1] not in DRAWN_CHANNELS:
        return {}
    logits = samples.teacher_logits
    hardness = difficulty(logits, samples.labels)
    predicted = most_frequent(logits.argmax(dim=1))
    grid = draw_grid(images, most_frequent(samples.labels), hardness, mean, std, predicted)
    return {f"{SAMPLES}/images": grid}


def sample_histograms(samples: Samples) -> dict[str, Tensor]:
    """Return difficulty ``1 - p(label)`` of the images, and the teacher's largest probability."""
    probabilities = samples.teacher_logits.float().softmax(dim=1)
    return {
        f"{SAMPLES}/difficulty": difficulty(samples.teacher_logits, samples.labels),
        f"{SAMPLES}/teacher_confidence": probabilities.amax(dim=1),
    }


def promotion_histograms(answers: Mapping[str, Sequence[Answers]]) -> dict[str, Tensor]:
    """Return the difficulty of a step's images for both networks, before and after promotion.

    Args:
        answers: What the networks said to the batch, by ``""``, and to what transforms by gradient
            made of it, by their mark, in parts.
    """
    found = {}
    for suffix, parts in answers.items():
        student, teacher = difficulties(parts)
        found[f"batch/difficulty/student{suffix}"] = student
        found[f"batch/difficulty/teacher{suffix}"] = teacher
    return found


def mean_scalars(histograms: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the mean of every histogram, which most of one bin says little without."""
    return {f"{name}_mean": float(values.float().mean()) for name, values in histograms.items()}


def layer_scalars(layers: Sequence[LayerDiagnosis]) -> dict[str, float]:
    """Return what moves of every layer by name: errors of weights, ends of activation ranges."""
    found = {}
    for layer in layers:
        if layer.kind == WEIGHT and layer.error is not None:
            found[f"quantization/weight_error/{layer.name}"] = layer.error
        if layer.kind == ACTIVATION and layer.low is not None and layer.high is not None:
            found[f"quantization/activation_low/{layer.name}"] = layer.low
            found[f"quantization/activation_high/{layer.name}"] = layer.high
    return found


def layer_rows(layers: Sequence[LayerDiagnosis]) -> list[list[str | int | float | None]]:
    """Return a row of :data:`LAYER_COLUMNS` for every quantized tensor, in order of execution."""
    return [list(astuple(layer)) for layer in layers]


def layer_markdown(layers: Sequence[LayerDiagnosis]) -> str:
    """Return the same rows as a Markdown table."""
    lines = [LAYER_COLUMNS, ("---",) * len(LAYER_COLUMNS), *map(_cells, layer_rows(layers))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Sequence[str | int | float | None]) -> list[str]:
    return [f"{c:.4g}" if isinstance(c, float) else "" if c is None else str(c) for c in row]
