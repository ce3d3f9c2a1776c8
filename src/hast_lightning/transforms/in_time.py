"""Changes of features along time: a shift, and frames that are masked."""

from __future__ import annotations

import torch
from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import FEATURES, Network
from hast_lightning.core.part import part
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ModelError


def shifted(features: Tensor, frames: Tensor) -> Tensor:
    """Return features (N, C, T, W), each moved by its number of ``frames`` (N,), int64.

    A positive number delays. What enters at an end repeats the frame there.
    """
    count = features.shape[2]
    places = torch.arange(count, device=features.device) - frames[:, None]
    index = places.clamp(0, count - 1)[:, None, :, None].expand_as(features)
    return features.gather(2, index)


def masked(features: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """Return features (N, C, T, W) without the frames ``start <= t < start + width`` of each.

    They get the mean of their coefficient over the batch and its frames: the zero of features is
    not silence.

    Args:
        features: (N, C, T, W).
        start: (N,), int64.
        width: (N,), int64; 0 masks nothing.
    """
    frames = torch.arange(features.shape[2], device=features.device)
    inside = (frames >= start[:, None]) & (frames < (start + width)[:, None])
    return torch.where(inside[:, None, :, None], features.mean((0, 2), keepdim=True), features)


@part("transform", "time_shift")
class TimeShift(Transform):
    """Moves features in time by up to some frames, drawn for each sample."""

    frames: int = 2
    """Largest shift to either side."""

    several_outputs = True

    def __post_init__(self) -> None:
        require_range("frames", self.frames, 0)

    def bind(self, teacher: Network, student: Network) -> None:
        """Refuse pictures, which have no time.

        Raises:
            ModelError: the network takes pictures.
        """
        if teacher.pretrained.modality != FEATURES:
            raise ModelError(
                f"transform {self.kind} acts on time; the network {teacher.pretrained.name} takes "
                "pictures (model.modality)"
            )

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the batch with each sample (C, frames, coefficients) moved."""
        shape, device = (len(batch.inputs),), batch.inputs.device
        drawn = torch.randint(-self.frames, self.frames + 1, shape, device=device)
        return batch._replace(inputs=shifted(batch.inputs, drawn))


@part("transform", "time_mask")
class TimeMask(TimeShift):
    """Replaces one span of frames by the mean of each coefficient, drawn for each sample.

    As augmentation: both networks see the masked sample.
    """

    frames: int = 10
    """Largest width of the span; widths are uniform from 0."""

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the batch with masked samples."""
        return batch._replace(inputs=masked(batch.inputs, *drawn_spans(batch.inputs, self.frames)))


def drawn_spans(features: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return start and width (N,) of a span for each sample, all of it inside.

    Widths are uniform in 0..``most``, at most all frames, and so are the starts.
    """
    count, frames, device = len(features), features.shape[2], features.device
    width = torch.randint(min(most, frames) + 1, (count,), device=device)
    start = (torch.rand(count, device=device) * (frames - width + 1)).long()
    return start, width
