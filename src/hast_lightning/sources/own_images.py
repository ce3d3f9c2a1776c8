"""The user's own unlabeled pictures in place of synthetic images.

For those who do have a few, and as the upper bound that every zero-shot figure is read against.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import expand_home, require_range
from hast_lightning.core.network import FEATURES, PICTURES, PretrainedNetwork
from hast_lightning.core.part import part
from hast_lightning.core.source import HELD_OUT_SEED, Site, Source
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.files.pictures import (
    MODES,
    Fitting,
    decode,
    find_pictures,
    read_arrays,
    require_features,
    require_pixels,
)
from hast_lightning.runtime.ranks import rank, world_size
from hast_lightning.sources.suitability import image_shape, refuse_maps

_log = logging.getLogger(__name__)

UNKNOWN = -1
LABELED_AT_ONCE = 32
EXPECTED = "a folder of pictures or an .npz file with x (uint8 N,H,W,C)"


def read_own_images(path: Path, limit: int, network: PretrainedNetwork, key: str) -> Tensor:
    """Return the pictures as the network expects them, but for the normalization.

    Photographs are resized and their centre is cropped as evaluation data are; what has the
    network's size already is taken as it is.

    Args:
        path: A folder or an .npz file.
        limit: How many are kept at most.
        network: Gives the input's shape.
        key: The setting that names the path, for messages.

    Returns:
        Shape (N, C, H, W), uint8; of features float32.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    origin = f"{key}={path}"
    if network.modality == FEATURES:
        return _features(path, limit, network, origin)
    if path.is_dir():
        pixels = _from_folder(path, limit, network, origin)
    elif path.is_file():
        pixels = _from_archive(path, limit, network, origin)
    else:
        raise DataError(f"{origin} does not exist; expected {EXPECTED}")
    # A copy where the order of the axes in memory is another one.
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def _features(path: Path, limit: int, network: PretrainedNetwork, origin: str) -> Tensor:
    if not path.is_file():
        raise DataError(f"{origin} is no file; expected an .npz file with x (features)")
    (values,) = read_arrays(path, ("x",), origin)
    values = require_features(values, network.input_shape, origin)
    return torch.from_numpy(values[_evenly(len(values), limit, origin)])


def _from_folder(
    path: Path, limit: int, network: PretrainedNetwork, origin: str
) -> NDArray[np.uint8]:
    channels, height, width = image_shape(network, origin)
    if channels not in MODES:
        raise DataError(
            f"{origin} is a folder of pictures, which have 1 or 3 channels; the network takes "
            f"{channels}: hand them in as an .npz file"
        )
    paths = find_pictures(path, origin)
    kept = [paths[index] for index in _evenly(len(paths), limit, origin)]
    return decode(kept, MODES[channels], Fitting(height, width, network.resize_ratio))


def _from_archive(
    path: Path, limit: int, network: PretrainedNetwork, origin: str
) -> NDArray[np.uint8]:
    channels, height, width = image_shape(network, origin)
    (images,) = read_arrays(path, ("x",), origin)
    require_pixels(images, channels, origin)
    images = images[_evenly(len(images), limit, origin)]
    if images.shape[1:3] == (height, width):
        return images
    if channels not in MODES:
        raise DataError(
            f"{origin}: x has images of {images.shape[1]}x{images.shape[2]} pixels (height x "
            f"width) and {channels} channels, which are not resized; the network takes "
            f"{height}x{width}"
        )
    fit = Fitting(height, width, network.resize_ratio)
    resized = [fit(Image.fromarray(image.squeeze())) for image in images]
    return np.stack([np.asarray(image) for image in resized]).reshape(
        len(images), height, width, channels
    )


def _evenly(count: int, limit: int, origin: str) -> NDArray[np.int64]:
    """Return which of ``count`` pictures are kept: all, or ``limit`` at equal distances."""
    if count > limit:
        _log.warning(
            "%s has %d pictures, of which %d are used (max_images)",
            *(origin, count, limit),
        )
    kept = min(count, limit)
    return np.arange(kept) * count // kept


@part("source", "images")
class OwnImages(Source):
    """The user's own unlabeled pictures in place of synthetic images; it needs no steps.

    They are kept as bytes on the CPU and normalized batch by batch on the source's device.
    Neither checkpoints nor any other file of a run holds them: a resumed run reads them again,
    and a checksum says whether they are the same. Labels are the network's own predictions,
    made when a picture is first asked for.

    Every rank goes through a share of its own. All hold out the same pictures.
    """

    path: str | None = None
    """A folder, searched at any depth, or an .npz file with ``x`` (uint8, N,H,W,C)."""
    max_images: int = 10_000
    """Pictures that are kept in memory, evenly spaced over those that there are. Each takes
    height x width x channels bytes: 10,000 of 224 pixels take 1.5 GB."""

    synthetic = False
    several_outputs = True

    labels: ClassVar[Tensor]
    mean: ClassVar[Tensor]
    std: ClassVar[Tensor]

    def __post_init__(self) -> None:
        self.path = expand_home(self.path)
        require_range("max_images", self.max_images, 1)
        if self.load is not None:
            raise ConfigurationError(
                f"load={self.load}: own pictures are read from path; leave load out"
            )

    def build(self, site: Site) -> None:
        """Read the pictures.

        Raises:
            ConfigurationError: no path is set, or there are too few pictures.
            DataError: there are none, or one cannot be read.
        """
        super().build(site)
        refuse_maps(site.pretrained, f"{site.key}={self.kind}")
        if site.pretrained.outputs is not None:
            vars(self)["label_kind"] = "none"
        if self.path is None:
            raise ConfigurationError(f"{site.key}.path is not set: point it at {EXPECTED}")
        network, key = site.pretrained, f"{site.key}.path"
        pixels = read_own_images(Path(self.path), self.max_images, network, key)
        count = len(pixels)
        held_out = max(1, round(site.holdout * count)) if site.holdout > 0 else 0
        if count - held_out < site.processes:
            raise ConfigurationError(
                f"{key} has {count} pictures, of which data.holdout={site.holdout} "
                f"keeps {held_out}: too few to train {site.processes} processes on"
            )
        self._pixels = pixels
        # Not the last ones as they come: in a folder these are all of one class.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(HELD_OUT_SEED))
        self._trainable, self._held_out = torch.split(order, [count - held_out, held_out])
        self._share = self._trainable
        self._checksum = hashlib.sha256(pixels.numpy().data).hexdigest()
        self.register_buffer("labels", torch.full((count,), UNKNOWN))
        self.register_buffer("mean", torch.tensor(network.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(network.std).view(-1, 1, 1), persistent=False)
        self._epochs_seed = _drawn_seed()
        self._given = 0  # pictures that sample() has given
        self._shuffled: tuple[int, Tensor] | None = None  # an epoch and its order

    def part_ways(self) -> None:
        """Take this rank's share of the pictures, in an order from its own streams."""
        self._share = self._trainable[rank() :: world_size()]
        self._epochs_seed = _drawn_seed()
        self._shuffled = None

    def own_state(self) -> dict[str, Any]:
        """Return where this rank is in its epochs, and the labels that it knows."""
        return {"labels": self.labels.cpu(), "counters": self.get_extra_state()}

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        self.labels.copy_(state["labels"])
        self.set_extra_state(state["counters"])

    @property
    def most(self) -> int:
        """Return the pictures of this process that are not held out."""
        return len(self._share)

    def sample(self, count: int) -> Batch:
        """Return images (count, C, H, W) and predicted labels, in shuffled epochs.

        Every picture of the rank's share is given once before any is given again.
        """
        numbers = range(self._given, self._given + count)
        index = torch.stack([self._share[self._place(number)] for number in numbers])
        self._given += count
        return self._batch(index)

    def _place(self, number: int) -> Tensor:
        """Return the place in the share of the picture given as the ``number``th, from 0."""
        epoch, place = divmod(number, len(self._share))
        return self._order(epoch)[place]

    def _order(self, epoch: int) -> Tensor:
        """Return the order of an epoch, which follows from its number and is in no checkpoint."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            seeded = torch.Generator().manual_seed(self._epochs_seed + epoch)
            self._shuffled = (epoch, torch.randperm(len(self._share), generator=seeded))
        return self._shuffled[1]

    def collect(self, count: int) -> Batch:
        """Return pictures (N, C, H, W) of the rank's share and labels, always the same."""
        return self._batch(self._share[: max(count, 0)])

    def held_out(self, count: int) -> Batch:
        """Return at most ``count`` of the held-out pictures (N, C, H, W) and predicted labels.

        Raises:
            ConfigurationError: nothing is held out.
        """
        if not len(self._held_out):
            raise ConfigurationError("data.holdout=0 holds no picture out")
        return self._batch(self._held_out[: max(count, 0)])

    def preview(self, count: int) -> Batch:
        """Return pictures (N, C, H, W) of all that are trained on, and predicted labels."""
        known = self.labels.clone()
        batch = self._batch(self._trainable[: max(count, 0)])
        # What is predicted here is not kept: a run is the same whether it is looked at or not.
        self.labels.copy_(known)
        return batch

    @torch.no_grad()
    def _batch(self, index: Tensor) -> Batch:
        device = self.labels.device
        values = self._pixels[index].to(device).float()
        if self.site.pretrained.modality == PICTURES:
            values = values / 255
        images = (values - self.mean) / self.std
        if self.label_kind == "none":
            return Batch(images)
        index = index.to(device)
        unknown = self.labels[index] == UNKNOWN
        if bool(unknown.any()):
            self.labels[index[unknown]] = self._predict(images[unknown])
        return Batch(images, self.labels[index])

    def _predict(self, images: Tensor) -> Tensor:
        network = self.site.pretrained.network.to(images.device)
        parts = torch.split(images, LABELED_AT_ONCE)
        return torch.cat([network(part).argmax(dim=1) for part in parts])

    def get_extra_state(self) -> dict[str, Any]:
        """Return the counters and the pictures' checksum, for ``state_dict``."""
        return {"given": self._given, "seed": self._epochs_seed, "checksum": self._checksum}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned.

        Raises:
            DataError: it belongs to other pictures.
        """
        if state["checksum"] != self._checksum:
            raise DataError(
                f"{self.site.key}.path: these are not the pictures that the run began with: "
                f"SHA-256 {self._checksum[:12]}..., not {state['checksum'][:12]}..."
            )
        self._given, self._epochs_seed = int(state["given"]), int(state["seed"])
        self._shuffled = None


def _drawn_seed() -> int:
    """Draw from torch's global stream: it follows from the seed of the run and the rank."""
    return int(torch.randint(2**31, ()))
