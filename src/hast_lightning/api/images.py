"""Images in whatever form they come, as batches that a network takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hast_lightning.data.given import as_tensor, network_input
from hast_lightning.errors import DataError, first_line
from hast_lightning.export.description import Description
from hast_lightning.runs.prediction import Picture, picture_batches, sample_files

BATCH_SIZE = 256
ORIGIN = "predict"


def batches(images: Any, wanted: Description) -> Iterator[Tensor]:
    """Yield normalized images, (B, C, H, W) float32, in order.

    Args:
        images: As :meth:`~hast_lightning.api.quantized_model.QuantizedModel.predict` takes them.
        wanted: Says how images are prepared.

    Raises:
        DataError: there are none, or they are not what the network takes.
    """
    pictures = _pictures(images, wanted)
    if pictures is not None:
        yield from picture_batches(pictures, wanted)
        return
    numbers = as_tensor(_with_batch(images, len(wanted.input_shape)), ORIGIN)
    if not len(numbers):
        raise DataError(f"{ORIGIN}: there are no images")
    for part in torch.split(numbers, BATCH_SIZE):  # normalized, bytes take four times as much
        yield network_input(part, wanted, ORIGIN)


def _pictures(images: Any, wanted: Description) -> Sequence[Picture] | None:
    """Return pictures and the files of samples; none where ``images`` are numbers."""
    if _is_picture(images):
        return [images] if isinstance(images, Image.Image) else _files(images, wanted)
    if not isinstance(images, list | tuple) or not any(map(_is_picture, images)):
        return None
    if not all(map(_is_picture, images)):
        raise DataError(f"{ORIGIN}: a list of pictures must hold nothing else")
    return [part for image in images for part in _pictures(image, wanted) or ()]


def _is_picture(image: Any) -> bool:
    return isinstance(image, Image.Image | str | os.PathLike)


def _files(path: str | os.PathLike[str], wanted: Description) -> list[Path]:
    if not os.fspath(path):  # which would be the working directory
        raise DataError(f"{ORIGIN}: {path!r} is no path")
    return sample_files(Path(path).expanduser(), wanted, f"{ORIGIN}: {path}")


def _with_batch(images: Any, dimensions: int) -> Any:
    """Return a single image of so many dimensions, or a list of them, as a batch."""
    if isinstance(images, list | tuple) and any(_dimensions(p) == dimensions for p in images):
        parts = [as_tensor(part, ORIGIN) for part in images]
        pixels = [part.dtype == torch.uint8 for part in parts]
        if any(pixels) and not all(pixels):  # the one would be taken for the other
            raise DataError(f"{ORIGIN}: a list of images of several types, bytes and floats")
        try:
            return torch.stack(parts)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise DataError(f"{ORIGIN}: a list of images that are no batch: {reason}") from error
    return images[None] if _dimensions(images) == dimensions else images


def _dimensions(images: Any) -> int | None:
    """Return the number of dimensions of a tensor or an array; none of anything else."""
    return getattr(images, "ndim", None)
