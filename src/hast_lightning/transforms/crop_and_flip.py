"""Random resized crop and flip of a whole batch at once, on its device, differentiable.

Every image gets its own box, by the law of torchvision's ``RandomResizedCrop``.
Cropping, bilinear resizing and flipping are linear and act on rows and columns
separately, so together they are two batched matrix products. Unlike
``grid_sample``, whose backward pass on CUDA adds in random order, these give
the same gradient at every run.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import FEATURES, Network
from hast_lightning.core.part import part
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ModelError
from hast_lightning.transforms.in_time import TimeShift

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Least and greatest width / height of a crop, torchvision's defaults."""
ATTEMPTS = 10
"""Boxes drawn before falling back to the centre, as torchvision does."""


def draw_crop_boxes(
    count: int,
    size: tuple[int, int],
    min_scale: float,
    max_scale: float,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw crop boxes by the law of torchvision's ``RandomResizedCrop``.

    The area's share of the image is uniform in ``[min_scale, max_scale]``, the
    aspect ratio log-uniform in :data:`ASPECT_RATIOS`; the first of ten draws
    that fits into the image is placed uniformly. Where none fits: the largest
    centred box of an allowed aspect ratio.

    Args:
        count: number of boxes.
        size: height and width of the images, in pixels.
        min_scale: least share of the area.
        max_scale: greatest share of the area.
        device: where the boxes are drawn.
        generator: a generator of that device; none: the global one.

    Returns:
        Shape (count, 4), int64: top, left, height, width, in pixels.
    """
    uniform = torch.rand(4, count, ATTEMPTS, device=device, generator=generator)
    shapes, fits = _candidate_shapes(uniform[0], uniform[1], size, min_scale, max_scale)
    first = fits.to(torch.uint8).argmax(dim=1)
    row = torch.arange(count, device=device)
    limits = torch.tensor(size, device=device)

    fallback = torch.tensor(_fallback_shape(size), device=device)
    fitted = fits.any(dim=1, keepdim=True)
    shape = torch.where(fitted, shapes[row, first], fallback)

    margin = limits - shape
    placed = (uniform[2:, :, 0].T * (margin + 1)).floor().long()
    corner = torch.where(fitted, placed, margin // 2)
    return torch.cat([corner, shape], dim=1)


def _candidate_shapes(
    area: Tensor, aspect: Tensor, size: tuple[int, int], min_scale: float, max_scale: float
) -> tuple[Tensor, Tensor]:
    """Turn uniform numbers into (height, width) of every attempt, and whether it fits."""
    height, width = size
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    target = (min_scale + area * (max_scale - min_scale)) * (height * width)
    ratio = torch.exp(low + aspect * (high - low))
    shapes = torch.stack([target / ratio, target * ratio], dim=-1).sqrt().round().long()
    limits = torch.tensor(size, device=area.device)
    return shapes, ((shapes > 0) & (shapes <= limits)).all(dim=-1)


def _fallback_shape(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the largest box of an allowed aspect ratio."""
    height, width = size
    low, high = ASPECT_RATIOS
    if width / height < low:
        return round(width / low), width
    if width / height > high:
        return height, round(height * high)
    return height, width


def _resampling_matrix(start: Tensor, length: Tensor, size: int, flipped: Tensor | None) -> Tensor:
    """Weights that resample ``length`` pixels from ``start`` on to ``size`` pixels.

    Bilinear with ``align_corners=False``; positions beyond the centres of the
    crop's outer pixels are clamped to them, so that nothing outside the crop
    is seen.

    Returns:
        Shape (N, size, size): output pixel by input pixel, rows add up to one.
    """
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    extent = length.unsqueeze(1).to(torch.float32)
    within = ((pixel + 0.5) * (extent / size) - 0.5).clamp_min(0).minimum(extent - 1)
    position = start.unsqueeze(1) + within
    if flipped is not None:
        position = torch.where(flipped.unsqueeze(1), position.flip(1), position)
    return (1 - (position.unsqueeze(2) - pixel).abs()).clamp_min(0)


def resized_crop(images: Tensor, boxes: Tensor, flipped: Tensor | None = None) -> Tensor:
    """Crop every image to its box, resize it bilinearly to the former size, and mirror it.

    Args:
        images: shape (N, C, H, W), floating point.
        boxes: shape (N, 4), int64: top, left, height, width.
        flipped: shape (N,), bool: which images are mirrored left to right.

    Returns:
        Shape (N, C, H, W); differentiable in ``images``. Equals torchvision's
        ``resized_crop`` of each image (antialiasing changes nothing when
        enlarging).
    """
    top, left, height, width = boxes.unbind(1)
    rows = _resampling_matrix(top, height, images.shape[2], None).to(images.dtype)
    columns = _resampling_matrix(left, width, images.shape[3], flipped).to(images.dtype)
    # Autocast would round the pixels to bfloat16.
    with torch.autocast(images.device.type, enabled=False):
        images = torch.einsum("nih,nchw->nciw", rows, images)
        return torch.einsum("nciw,njw->ncij", images, columns)


def crop_and_flip(
    images: Tensor,
    min_scale: float,
    max_scale: float,
    flip: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random resized crop and horizontal flip, drawn afresh for every image.

    Args:
        images: shape (N, C, H, W), floating point.
        min_scale: least share of the area that a crop keeps.
        max_scale: greatest share.
        flip: probability that an image is mirrored.
        generator: a generator of the images' device; none: the global one.

    Returns:
        Shape (N, C, H, W); differentiable in ``images``.
    """
    count, _, height, width = images.shape
    device = images.device
    boxes = draw_crop_boxes(count, (height, width), min_scale, max_scale, device, generator)
    flipped = torch.rand(count, device=device, generator=generator) < flip
    return resized_crop(images, boxes, flipped)


@part("transform", "crop_and_flip")
class CropAndFlip(Transform):
    """Random resized crop and horizontal flip, drawn afresh for every image of a batch.

    Features (``model.modality=features``) are neither cropped nor flipped, which would make other
    sounds of them: each sample is shifted in time by up to two frames instead.
    """

    probability: float = 1.0
    """Probability that a whole batch is augmented; 0 switches augmentation off."""
    min_scale: float = 0.5
    """Smallest area of the crop as a share of the image's."""
    max_scale: float = 1.0
    """Largest area of the crop as a share of the image's."""
    flip: float = 0.5
    """Probability of a horizontal flip, per image."""

    several_outputs = True

    def __post_init__(self) -> None:
        require_range("probability", self.probability, 0, 1)
        require_range("flip", self.flip, 0, 1)
        require_range("min_scale", self.min_scale, 0, 1, open_minimum=True)
        require_range("max_scale", self.max_scale, self.min_scale, 1)

        self._shift: TimeShift | None = None

    def bind(self, teacher: Network, student: Network) -> None:
        """Look whether samples are pictures; refuse other inputs where they would be cropped.

        Raises:
            ModelError: the network takes in signals.
        """
        if teacher.pretrained.modality == FEATURES:
            self._shift = TimeShift()
            return
        shape = teacher.pretrained.input_shape
        if len(shape) != 3 and self.probability:
            raise ModelError(
                f"the transform {self.kind} crops images (C, H, W), and the network "
                f"{teacher.pretrained.name} takes inputs of {'x'.join(map(str, shape))}: "
                "enabled=false leaves it out"
            )

    def unused(self) -> Collection[str]:
        """Return the other settings where no batch is augmented."""
        return () if self.probability else ("min_scale", "max_scale", "flip")

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the batch as it is, or each image (C, H, W) cropped and flipped, or shifted."""
        # The coin is tossed on the CPU, so that no GPU has to be waited for.
        if self.probability == 0 or torch.rand(()).item() >= self.probability:
            return batch
        if self._shift is not None:
            return self._shift.forward(batch)
        images = crop_and_flip(batch.inputs, self.min_scale, self.max_scale, self.flip)
        return batch._replace(inputs=images)
