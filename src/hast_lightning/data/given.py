"""Labelled images that are handed over in Python, for evaluation only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hast_lightning.errors import DataError

if TYPE_CHECKING:
    from hast_lightning.models.zoo import PretrainedNetwork

BATCH_SIZE = 256
WHITE = 255
"""The pixel value of bytes that stands for 1."""


class GivenData:
    """Batches of what the user gave, checked one by one and normalized where they are bytes.

    Args:
        given: A pair of images (N, C, H, W) and labels (N,), or an iterable of such batches.
        network: What the images are for.

    Raises:
        DataError: ``given`` is neither, can be gone through only once, is empty, or its first
            batch does not fit the network.
    """

    def __init__(self, given: Any, network: PretrainedNetwork) -> None:
        self._batches = _batches(given)
        self._shape, self._classes = network.input_shape, network.num_classes
        self._mean, self._std = network.mean, network.std
        if next(iter(self), None) is None:
            raise DataError("data holds no images; at least one is needed")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized float32 images (B, C, H, W) and int64 labels (B,).

        Raises:
            DataError: a batch does not fit the network.
        """
        for batch in self._batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise DataError(
                    f"data gives a {type(batch).__name__}; expected pairs (images, labels)"
                )
            images = network_input(batch[0], self._shape, self._mean, self._std, "data")
            yield images, _labels(batch[1], len(images), self._classes)


def network_input(
    images: Any,
    shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    origin: str,
) -> Tensor:
    """Images as the network takes them, on the CPU.

    Args:
        images: (N, C, H, W). Of type uint8 they are pixels from 0 to 255, which are normalized;
            of a floating type they are normalized already.
        shape: (C, H, W) that the network takes.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        origin: What they were given as, for errors.

    Returns:
        (N, C, H, W), float32.

    Raises:
        DataError: the type or the shape is another.
    """
    tensor = _tensor(images, origin)
    if tensor.dim() != 4 or tuple(tensor.shape[1:]) != shape:
        expected = ", ".join(map(str, shape))
        raise DataError(
            f"{origin}: images of shape {tuple(tensor.shape)}; the network takes (N, {expected})"
        )
    if tensor.dtype == torch.uint8:
        centre, spread = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        return (tensor.float() / WHITE - centre) / spread
    if not tensor.is_floating_point():
        raise DataError(
            f"{origin}: images of type {tensor.dtype}; allowed: uint8 (pixels 0 to 255), or "
            "floating point (normalized already)"
        )
    return tensor.float()


def _batches(given: Any) -> Iterable[Any]:
    if (
        isinstance(given, tuple | list)
        and len(given) == 2
        and not isinstance(given[0], tuple | list)
    ):
        images, labels = (_tensor(part, "data") for part in given)
        if len(images) != len(labels):
            raise DataError(f"data has {len(images)} images and {len(labels)} labels")
        # Views: no image is copied before its turn.
        return list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))
    if isinstance(given, Iterator):
        raise DataError(
            "data can be gone through only once, and is needed twice: pass a list or a DataLoader"
        )
    if not isinstance(given, Iterable):
        raise DataError(
            f"data is a {type(given).__name__}; expected a pair (images, labels) or an iterable "
            "of such batches"
        )
    return given


def _tensor(value: Any, origin: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{origin}: a {type(value).__name__} is no tensor") from error
    if tensor.dim() == 0:
        raise DataError(f"{origin}: a single number is no batch")
    return tensor


def _labels(given: Any, count: int, classes: int) -> Tensor:
    labels = _tensor(given, "data")
    if labels.is_floating_point() or labels.shape != (count,):
        raise DataError(
            f"data: labels of type {labels.dtype} and shape {tuple(labels.shape)}; expected "
            f"integers of shape ({count},)"
        )
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"data: labels from {int(labels.min())} to {int(labels.max())}; the network knows 0 "
            f"to {classes - 1}"
        )
    return labels.long()
