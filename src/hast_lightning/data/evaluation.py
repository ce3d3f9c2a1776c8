"""Labeled images to evaluate on; nothing here is ever trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hast_lightning.config import DataConfig
from hast_lightning.core.network import FEATURES, TOKENS
from hast_lightning.data.image_folder import ImageFolderData, load_image_folder
from hast_lightning.data.recordings import load_recordings
from hast_lightning.data.texts import TextData, load_texts
from hast_lightning.errors import DataError
from hast_lightning.files.pictures import read_arrays, require_features, require_pixels

if TYPE_CHECKING:
    from hast_lightning.core.network import PretrainedNetwork

Arrays = tuple[NDArray[Any], NDArray[Any]]
"""Images (N, H, W, C) and labels (N,), as read and not yet checked."""

DIGITS_WHITE = 16
"""The brightest pixel value of scikit-learn's digits."""
DIGITS_HELD_OUT_EVERY = 3
"""Every third digit is held out, from the first on; the bundled teacher never saw these."""


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """Labeled images or features, normalized batch by batch.

    Attributes:
        images: (N, C, H, W), uint8 pixels or float32 features.
        labels: (N,), int64.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        batch_size: images a batch; the last batch may be smaller.
        white: the pixel value that stands for 1; of features 1 itself.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    white: int = 255

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized float32 images (B, C, H, W) and int64 labels (B,), in order."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        batches = zip(
            torch.split(self.images, self.batch_size),
            torch.split(self.labels, self.batch_size),
            strict=True,
        )
        for images, labels in batches:
            yield (images.float() / self.white - mean) / std, labels


def load_evaluation_data(
    config: DataConfig, network: PretrainedNetwork
) -> EvaluationData | ImageFolderData | TextData | None:
    """Read the evaluation data and check it against what the network takes.

    Args:
        config: ``source`` is ``digits`` (the held-out third of scikit-learn's digits), ``npz``
            (``x`` uint8 (N, H, W, C), or features as numbers of any type, and ``y`` integers
            (N,); of token ids ``x`` alone, (N, length)), ``cifar10`` (the official test
            images, in the folder that torchvision laid out), ``imagenet`` (a folder of
            photographs with one folder per class), ``wav`` (a folder of recordings, likewise) or
            ``none``; ``given`` data are not read here.
        network: gives the input shape, the number of classes and the normalization.

    Returns:
        The data, or None if the source is ``none``.

    Raises:
        DataError: the data are missing, unreadable, malformed or do not fit the network.
    """
    if config.source == "none":
        return None
    if config.source == "given":
        raise DataError(
            "data.source=given: the images are handed over in Python (hast_lightning.quantize); "
            "on the command line choose one of cifar10, digits, imagenet, npz, wav and none"
        )
    if network.outputs is not None:
        raise DataError(
            f"data={config.source} has labels of images, and the network {network.name} puts out "
            f"several tensors ({network.outputs.in_words}): choose data=none, and measure what "
            "they are for in Python"
        )
    if network.denoises:
        raise DataError(
            f"data={config.source} has labels, and the network {network.name} answers with noise "
            "(model.modality=diffusion): choose data=none, and measure its samples in Python"
        )
    if network.modality == TOKENS:
        return load_texts(config, network)
    features = network.modality == FEATURES
    if features and config.source not in ("npz", "wav"):
        raise DataError(
            f"data={config.source} are pictures; the network {network.name} takes features "
            "(model.modality=features): choose data=npz, data=wav or data=none"
        )
    if config.source == "wav":
        return _recordings(config, network)
    if config.source == "imagenet":
        return load_image_folder(config, network)
    if config.source == "digits":
        origin, white = "data=digits", DIGITS_WHITE
        images, labels = digits(held_out=True)
    else:
        origin, white = f"data.path={config.path}", 255
        read = _read_npz if config.source == "npz" else _read_cifar10
        images, labels = read(_existing(config.path, config.source), origin)
    if features:
        images, white = require_features(images, network.input_shape, origin), 1
    else:
        _check_images(images, network.input_shape, origin)
        # A copy: torch refuses to share memory that is read-only.
        images = images.transpose(0, 3, 1, 2).copy()
    _check_labels(labels, len(images), network.num_classes, origin)
    return EvaluationData(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels.astype(np.int64)),
        mean=network.mean,
        std=network.std,
        batch_size=config.batch_size,
        white=white,
    )


def _recordings(config: DataConfig, network: PretrainedNetwork) -> EvaluationData:
    if network.modality != FEATURES:
        raise DataError(
            f"data=wav are recordings; the network {network.name} takes pictures: choose "
            "model.modality=features, or another data=..."
        )
    features, labels = load_recordings(config, network)
    return EvaluationData(
        images=features,
        labels=torch.from_numpy(labels),
        mean=network.mean,
        std=network.std,
        batch_size=config.batch_size,
        white=1,
    )


def digits(*, held_out: bool) -> Arrays:
    """Scikit-learn's 1,797 handwritten digits: the held-out third, or all the others.

    Args:
        held_out: true for the images whose index is a multiple of three (599).

    Returns:
        Images (N, 8, 8, 1), uint8 from 0 to ``DIGITS_WHITE``, and labels (N,), int64.
    """
    # Here, because scikit-learn takes a second to import and only this source needs it.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = (np.arange(len(labels)) % DIGITS_HELD_OUT_EVERY == 0) == held_out
    images = pixels[chosen].reshape(-1, 8, 8, 1)
    return images.astype(np.uint8), labels[chosen].astype(np.int64)


def _existing(path: str | None, source: str) -> Path:
    """The path if it is what the source reads: a file for ``npz``, a folder for ``cifar10``."""
    if path is None:
        raise DataError(f"data.path is not set: data={source} needs the path of its files")
    found = Path(path).expanduser()
    expected = "an .npz file" if source == "npz" else "the folder of cifar-10-batches-py"
    if not found.exists():
        raise DataError(f"data.path={path} does not exist; expected {expected}")
    if found.is_dir() != (source == "cifar10"):
        actual = "a folder" if found.is_dir() else "not a folder"
        raise DataError(f"data.path={path} is {actual}; expected {expected}")
    return found


def _read_npz(path: Path, origin: str) -> Arrays:
    images, labels = read_arrays(path, ("x", "y"), origin)
    return images, labels


def _read_cifar10(folder: Path, origin: str) -> Arrays:
    """The official test images, from files whose checksums torchvision has verified."""
    # Here, because torchvision takes a second to import and only this source needs it.
    from torchvision.datasets import CIFAR10

    try:
        dataset = CIFAR10(str(folder), train=False, download=False)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{origin} has no complete {CIFAR10.base_folder}; to download it there, run "
            f"torchvision.datasets.CIFAR10({str(folder)!r}, download=True) in Python"
        ) from error
    return np.asarray(dataset.data), np.asarray(dataset.targets)


def _check_images(images: NDArray[Any], input_shape: tuple[int, int, int], origin: str) -> None:
    channels, height, width = input_shape
    require_pixels(images, channels, origin)
    if images.shape[1:3] != (height, width):
        raise DataError(
            f"{origin}: x has images of {images.shape[1]}x{images.shape[2]} pixels (height x "
            f"width); the network takes {height}x{width}"
        )


def _check_labels(labels: NDArray[Any], count: int, num_classes: int, origin: str) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{origin}: y has type {labels.dtype}; allowed: integers")
    if labels.shape != (count,):
        raise DataError(
            f"{origin}: y has shape {labels.shape}; allowed: ({count},), one label an image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"{origin}: y has labels from {low} to {high}; the network knows 0 to {num_classes - 1}"
        )
