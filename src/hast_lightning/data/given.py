"""Labeled images that are handed over in Python, for evaluation only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from hast_lightning.errors import DataError
from hast_lightning.files.pictures import MODES, Fitting, shown_picture

BATCH_SIZE = 256
WHITE = 255
"""The pixel value of bytes that stands for 1."""
EXPECTED = (
    "expected a pair (images, labels), an iterable or a function that gives such batches, or a "
    "Dataset of (image, label)"
)
DATA_MODULE = ("prepare_data", "setup", "val_dataloader", "test_dataloader")
"""What tells a LightningDataModule, without importing Lightning for what is none."""
_END = object()


class TakesImages(Protocol):
    """What images have to fit: a pretrained network, or the description of a quantized one."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of an image."""
        ...

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Return what pixels in [0, 1] are normalized with, per channel."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Return the same for the standard deviation."""
        ...

    @property
    def resize_ratio(self) -> float:
        """Return a photograph's shorter side as a multiple of the side that is cut out."""
        ...


class GivenData:
    """Batches of what the user gave, checked one by one and normalized where they are bytes.

    What is in memory is checked as a whole at once; of all else the first batch is.

    Args:
        given: A pair of images (N, C, H, W) and labels (N,); an iterable of such batches, or a
            function that returns one at every call; or single images (C, H, W), or Pillow's, and
            their labels: a Dataset or an iterable of them.
        network: What the images are for.

    Raises:
        DataError: ``given`` is none of these, can be gone through only once, is empty, or does
            not fit the network.
    """

    def __init__(self, given: Any, network: TakesImages) -> None:
        self._given = _repeatable(given, len(network.input_shape))
        self._network = network
        checked = iter(self)
        for _ in checked if isinstance(given, tuple | list) else islice(checked, 1):
            pass

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized float32 images (B, C, H, W) and int64 labels (B,).

        Raises:
            DataError: a batch does not fit the network, or there is none.
        """
        network = self._network
        empty = True
        for pair in _in_batches(_without_trace(self._given), network):
            images = network_input(pair[0], network, "data")
            yield images, _labels(pair[1], len(images), network.num_classes)
            empty = False
        if empty:
            raise DataError("data holds no images; at least one is needed, at every pass")


def network_input(images: Any, network: TakesImages, origin: str) -> Tensor:
    """Images as the network takes them, on the CPU.

    Args:
        images: (N, C, H, W). Of type uint8 they are pixels from 0 to 255, which are normalized;
            of a floating type they are normalized already.
        network: What they are for.
        origin: What they were given as, for errors.

    Returns:
        (N, C, H, W), float32.

    Raises:
        DataError: the type or the shape is another, or a value is NaN or infinite.
    """
    tensor, shape = as_tensor(images, origin), network.input_shape
    if tuple(tensor.shape[1:]) != tuple(shape):
        expected = ", ".join(map(str, shape))
        raise DataError(
            f"{origin}: images of shape {tuple(tensor.shape)}; the network takes (N, {expected})"
        )
    if tensor.dtype == torch.uint8:
        centre, spread = (
            torch.tensor(values).view(-1, *(1,) * (len(shape) - 1))
            for values in (network.mean, network.std)
        )
        return (tensor.float() / WHITE - centre) / spread
    if not tensor.is_floating_point():
        raise DataError(
            f"{origin}: images of type {tensor.dtype}; allowed: uint8 (pixels 0 to 255), or "
            "floating point (normalized already)"
        )
    if not bool(tensor.isfinite().all()):
        raise DataError(f"{origin}: images have NaN or infinite values")
    return tensor.float()


def _loader_of(module: Any) -> Iterable[Any]:
    """Return the batches of a LightningDataModule: those for validation, or else those for tests.

    Raises:
        DataError: it has neither.
    """
    module.prepare_data()
    for stage, name in (("validate", "val_dataloader"), ("test", "test_dataloader")):
        module.setup(stage)
        # Lightning's own raise where they are not overridden.
        with suppress(*_not_there()):
            loader: Iterable[Any] | None = getattr(module, name)()
            if loader is not None:
                return loader
    raise DataError("data is a LightningDataModule without data for validation or tests")


def _not_there() -> tuple[type[Exception], ...]:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return MisconfigurationException, NotImplementedError


def _repeatable(given: Any, dimensions: int) -> Iterable[Any]:
    """Return what can be gone through again and again, of batches or of single images."""
    if all(hasattr(given, name) for name in DATA_MODULE):
        return _loader_of(given)
    if _is_pair(given):
        return _split(given[0], given[1], dimensions)
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        return _OfDataset(given)
    if isinstance(given, Iterator):
        raise _only_once()
    if isinstance(given, Iterable):
        return given
    if callable(given) and not isinstance(given, type | torch.nn.Module):
        return _Anew(given)
    raise DataError(f"data is a {type(given).__name__}; {EXPECTED}")


def _only_once() -> DataError:
    return DataError(
        "data can be gone through only once, and is needed twice: pass a list, a DataLoader, or a "
        "function that returns it anew"
    )


def _is_pair(given: Any) -> bool:
    return (
        isinstance(given, tuple | list)
        and len(given) == 2
        and not isinstance(given[0], tuple | list)
    )


def _split(images: Any, labels: Any, dimensions: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of a pair, as views: no image is copied before its turn."""
    both = as_tensor(images, "data"), as_tensor(labels, "data")
    if both[0].dim() != dimensions + 1:
        expected = "(N, C, H, W)" if dimensions == 3 else "(N, C, L)"
        raise DataError(f"data: images of shape {tuple(both[0].shape)}; expected {expected}")
    if len(both[0]) != len(both[1]):
        raise DataError(f"data has {len(both[0])} images and {len(both[1])} labels")
    if not len(both[0]):
        return []
    parts = (torch.split(tensor, BATCH_SIZE) for tensor in both)
    return list(zip(*parts, strict=True))


class _OfDataset:
    """The items of a map-style dataset, which need not raise IndexError behind the last."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return (self._dataset[index] for index in range(len(self._dataset)))


class _Anew:
    """What a function gives at every call."""

    def __init__(self, give: Callable[..., Any]) -> None:
        try:
            inspect.signature(give).bind()
        except (TypeError, ValueError) as error:
            raise DataError(
                f"data is a function that cannot be called without arguments: {error}"
            ) from error
        self._give = give
        if isinstance(first := give(), Iterator) and give() is first:
            raise _only_once()

    def __iter__(self) -> Iterator[Any]:
        given = self._give()
        if not isinstance(given, Iterable):
            raise DataError(
                f"data is a function that gives a {type(given).__name__}; expected an iterable of "
                "batches (images, labels)"
            )
        return iter(given)


def _without_trace(items: Iterable[Any]) -> Iterator[Any]:
    """The items, with torch's random stream as it was: measuring must not change the training.

    A DataLoader draws a number at every pass, and many more where it shuffles. The items draw from
    a stream of their own, which goes on from one to the next.
    """
    iterator: Iterator[Any] | None = None
    stream = torch.get_rng_state()
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(stream)
            iterator = iterator or iter(items)
            item = next(iterator, _END)
            stream = torch.get_rng_state()
        if item is _END:
            return
        yield item


def _in_batches(items: Iterator[Any], network: TakesImages) -> Iterator[tuple[Any, Any]]:
    """Pairs of images and labels; single ones are put together."""
    first = next(items, _END)
    if first is _END:
        return
    pairs = (_pair(item) for item in chain([first], items))
    if not _is_single(_pair(first)[0], len(network.input_shape)):
        yield from pairs
        return
    while samples := list(islice(pairs, BATCH_SIZE)):
        images = [_image(image, network) for image, _ in samples]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            shown = " and ".join(map(str, sorted(shapes)[:2]))
            raise DataError(f"data: images of different shapes, {shown}, are no batch")
        yield torch.stack(images), [label for _, label in samples]


def _pair(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"data gives a {type(item).__name__}; expected pairs (images, labels)")
    return item[0], item[1]


def _is_single(image: Any, dimensions: int) -> bool:
    return isinstance(image, Image.Image) or getattr(image, "ndim", None) == dimensions


def _image(given: Any, network: TakesImages) -> Tensor:
    """One image (C, H, W); a picture of another size is prepared as those of a folder are."""
    if not isinstance(given, Image.Image):
        return as_tensor(given, "data")
    channels, height, width = network.input_shape
    if channels not in MODES:
        raise DataError(f"data: pictures have 1 or 3 channels; the network takes {channels}")
    fitting = Fitting(height, width, network.resize_ratio)
    pixels = np.array(fitting(shown_picture(given, MODES[channels], "data")))
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)


def as_tensor(value: Any, origin: str) -> Tensor:
    """Numbers as a tensor on the CPU, of at least one dimension.

    Raises:
        DataError: they are none; the message calls them ``origin``.
    """
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{origin}: a {type(value).__name__} is no tensor") from error
    if tensor.dim() == 0:
        raise DataError(f"{origin}: a single number is no batch")
    return tensor


def _labels(given: Any, count: int, classes: int) -> Tensor:
    labels = as_tensor(given, "data")
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not integers or labels.shape != (count,):
        raise DataError(
            f"data: labels of type {labels.dtype} and shape {tuple(labels.shape)}; expected "
            f"integers of shape ({count},)"
        )
    labels = labels.long()
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"data: labels from {int(labels.min())} to {int(labels.max())}; the network knows 0 "
            f"to {classes - 1}"
        )
    return labels
