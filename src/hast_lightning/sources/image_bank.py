"""A bank of images that are themselves the parameters (HAST's released form).

One batch at a time is optimized, starting from noise; when it has had its
steps it is written to the bank and replaced by fresh noise. Once the bank is
full, the oldest batch is the next to be replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import MAX_RATE, expand_home, require_choice, require_range
from hast_lightning.core.part import part
from hast_lightning.core.source import Site, TrainedSource
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.files.tensors import read_tensors, write_tensors
from hast_lightning.graph.outputs import puts_out_maps
from hast_lightning.runtime.ranks import gathered
from hast_lightning.sources.starts import STARTS, started

FILE_KIND = "image-bank"
COUNTERS = ("iteration", "position", "filled", "available", "cursor")
FALLS = ("plateau", "cosine")
RATE_FALLS = ("patience", "factor", "min_lr")
"""Settings that say how the rate falls on a plateau."""
FRESH_PLATEAU: dict[str, float] = {
    "best": float("inf"),
    "num_bad_epochs": 0,
    "cooldown_counter": 0,
    "last_epoch": 0,
}
"""The part of a ReduceLROnPlateau that changes, as it is before its first step."""


@part("source", "image_bank")
class ImageBank(TrainedSource):
    """Images that are themselves the parameters, optimized batch by batch from noise (HAST).

    Every rank fills the bank with batches of its own; all have the whole bank in the end. The
    last images of the bank are those that are held out.

    Source: released HAST (Li et al., CVPR 2023): N(0, 1), Adam at 0.5 reduced on plateaus, 1,000
    iterations per batch of 256, 5,120 images, uniform labels.
    """

    size: int = 5120
    """Images in the bank."""
    batch_size: int = 256
    """Images that are optimized together."""
    iterations: int = 1000
    """Optimizer steps that each batch of images gets."""
    lr: float = 0.5
    """Learning rate of Adam, in normalized pixel units a step; of features, in deviations of each
    coefficient."""
    patience: int = 50
    """Steps without a lower loss after which the rate falls."""
    factor: float = 0.1
    """What the rate is then multiplied by."""
    min_lr: float = 1e-4
    """The rate does not fall below this."""
    start: str = "white"
    """What pictures start from: ``white`` noise as released, ``smooth`` noise, whose amplitude
    falls with the frequency as that of photographs does, ``leaves`` that cover one another, which
    have edges, too, or leaves that are ``textured`` with such noise (all three ours)."""
    falls: str = "plateau"
    """How the rate falls: on a ``plateau`` as released, or as a ``cosine`` to zero over the
    iterations of a batch, whatever the loss does."""

    file_kind: ClassVar[str] = FILE_KIND
    several_outputs = True
    images: ClassVar[Tensor]
    labels: ClassVar[Tensor]
    active_labels: ClassVar[Tensor]
    permutation: ClassVar[Tensor]

    def __post_init__(self) -> None:
        self.load = expand_home(self.load)
        require_range("size", self.size, 1)
        require_range("batch_size", self.batch_size, 1)
        require_range("iterations", self.iterations, 1)
        require_range("lr", self.lr, 0, MAX_RATE, open_minimum=True)
        require_range("patience", self.patience, 0)
        require_range("factor", self.factor, 0, 1, open_minimum=True)
        require_range("min_lr", self.min_lr, 0, MAX_RATE)
        require_choice("start", self.start, STARTS)
        require_choice("falls", self.falls, FALLS)
        if self.size % self.batch_size:
            raise ConfigurationError(
                f"size={self.size} must be a multiple of batch_size={self.batch_size}"
            )

    def unused(self) -> Collection[str]:
        """Return what lowers the rate on a plateau, where nothing does."""
        if self.falls == "cosine":
            return RATE_FALLS
        return ("patience", "min_lr") if self.factor == 1 else ()

    def build(self, site: Site) -> None:
        """Draw the first batch, or read a saved bank, whose file decides its size.

        Raises:
            ConfigurationError: the hold-out leaves no image to train on, or the bank cannot be
                divided among the ranks.
            DataError: the file is missing, unreadable, or does not fit the network.
        """
        super().build(site)
        loaded = self._read(site) if self.load is not None else None
        count = self.size if loaded is None else len(loaded[0])
        # A loaded bank is not divided: every rank reads all of it.
        processes = site.processes if loaded is None else 1
        if count % (self.batch_size * processes):
            raise ConfigurationError(
                f"{site.key}.size={count} must be a multiple of "
                f"{site.key}.batch_size={self.batch_size} times the {processes} processes"
            )
        self.count, self.processes = count, processes
        if puts_out_maps(site.pretrained.network) or site.pretrained.outputs is not None:
            vars(self)["label_kind"] = "none"
        self.held_out_count = max(1, round(site.holdout * count)) if site.holdout > 0 else 0
        self.trainable_count = count - self.held_out_count
        if self.trainable_count < 1:
            raise ConfigurationError(
                f"data.holdout={site.holdout} leaves nothing to train on of {site.key}.size={count}"
            )
        shape, classes = site.pretrained.input_shape, site.pretrained.num_classes
        self.active = nn.Parameter(self._noise(torch.randn(self.batch_size, *shape)))
        self.register_buffer("active_labels", torch.randint(classes, (self.batch_size,)))
        empty = torch.zeros(count, *shape), torch.zeros(count, dtype=torch.int64)
        for name, tensor in zip(("images", "labels"), loaded or empty, strict=True):
            self.register_buffer(name, tensor)
        # Of fixed length, so that checkpoints of any moment fit; the first `available` count.
        self.register_buffer("permutation", torch.zeros(self.trainable_count, dtype=torch.int64))
        self.iteration = 0  # optimizer steps that the active batch has had
        self.position = 0  # where in the bank the active batch will be written
        self.filled = count if loaded else 0  # images written to the bank
        self.available = 0  # images that the current epoch of sample() shuffles
        self.cursor = 0  # how many of them it has given
        self._plateau = dict(FRESH_PLATEAU)

    def _read(self, site: Site) -> tuple[Tensor, Tensor]:
        """Return the images and labels of ``load``."""
        tensors, _ = read_tensors(str(self.load), self.file_kind, f"{site.key}.load")
        images, labels = _checked(f"{site.key}.load={self.load}", tensors, site)
        if len(images) % self.batch_size:
            raise DataError(
                f"{site.key}.load={self.load}: holds {len(images)} images, not a multiple of "
                f"{site.key}.batch_size={self.batch_size}"
            )
        return images, labels

    def _noise(self, white: Tensor) -> Tensor:
        return started(self.site.pretrained, white, self.start)

    def _labeled(self, images: Tensor, labels: Tensor) -> Batch:
        """Return a batch, without labels where a network has no answer for a whole image."""
        return Batch(images, None if self.label_kind == "none" else labels)

    @property
    def most(self) -> int:
        """Return the images that are not held out."""
        return self.trainable_count

    @property
    def steps_to_fill(self) -> int:
        """Return the optimizer steps after which every image of the bank was made once."""
        batches = self.count // (self.batch_size * self.processes)
        return batches * self.iterations

    @property
    def steps_to_start(self) -> int:
        """Return the optimizer steps until the first batch is finished; zero if one was loaded."""
        return 0 if self.filled else self.iterations

    @property
    def full(self) -> bool:
        """Return whether every image of the bank was made."""
        return self.filled == self.count

    def propose(self) -> Batch:
        """Return the active batch: images (B, C, H, W), of a parameter, and labels (B,)."""
        return self._labeled(self._made(), self.active_labels)

    @torch.no_grad()
    def part_ways(self) -> None:
        """Draw the active batch afresh, from this rank's streams."""
        self.active.copy_(self._noise(self.active.normal_()))
        self.active_labels.random_(self.site.pretrained.num_classes)

    def own_state(self) -> dict[str, Any]:
        """Return the active batch, its plateau, and where this rank is in its epoch."""
        return {
            "active": self.active.detach().cpu(),
            "labels": self.active_labels.cpu(),
            "permutation": self.permutation.cpu(),
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "plateau": dict(self._plateau),
        }

    @torch.no_grad()
    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        self.active.copy_(state["active"])
        self.active_labels.copy_(state["labels"])
        self.permutation.copy_(state["permutation"])
        for name in COUNTERS:
            setattr(self, name, int(state["counters"][name]))
        self._plateau = dict(state["plateau"])

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Return Adam over the active batch, which stays the same parameter throughout."""
        return {"adam": torch.optim.Adam([self.active], lr=self.lr)}

    def improved(self, loss: float, optimizers: Mapping[str, Optimizer]) -> Batch | None:
        """Reduce the learning rate on a plateau, and move on when the batch had its steps.

        Returns:
            The batches of all ranks where they had their steps.

        Raises:
            FloatingPointError: the batch had its steps and is NaN or infinite; it is not stored.
        """
        self._step_plateau(loss, optimizers["adam"])
        self.iteration += 1
        if self.iteration < self.iterations:
            return None
        finished = self._store_active_batch()
        self._start_fresh_batch(optimizers["adam"])
        return finished

    def _step_plateau(self, loss: float, optimizer: Optimizer) -> None:
        if self.falls == "cosine":
            share = (self.iteration + 1) / self.iterations
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * share))
        else:
            self._on_plateau(loss, optimizer, self.min_lr)

    def _on_plateau(self, loss: float, optimizer: Optimizer, min_lr: float) -> None:
        if self.factor == 1:  # torch refuses it; it means a constant rate
            return
        # Rebuilt from plain numbers at every step: they are what a checkpoint can hold.
        plateau = ReduceLROnPlateau(
            optimizer,
            factor=self.factor,
            patience=self.patience,
            min_lr=min_lr,
        )
        plateau.load_state_dict(self._plateau)
        plateau.step(loss)
        state = plateau.state_dict()
        self._plateau = {name: state[name] for name in FRESH_PLATEAU}

    @torch.no_grad()
    def _store_active_batch(self) -> Batch:
        # Every rank finishes a batch in the same step.
        images, labels = gathered(self._made()), gathered(self.active_labels)
        if not bool(images.isfinite().all()):
            raise FloatingPointError("finished images are NaN or infinite")
        end = self.position + len(images)
        # Once they are there, held-out images stay: what is measured on them must compare.
        last = min(end, self.trainable_count) if self.full else end
        count = max(last - self.position, 0)
        self.images[self.position : self.position + count].copy_(images[:count])
        self.labels[self.position : self.position + count].copy_(labels[:count])
        self.filled = max(self.filled, end)
        self.position = end % self.count
        # Copies: noise takes the place of the active batch.
        return self._labeled(images.detach().clone(), labels.clone())

    def _made(self) -> Tensor:
        """Return the images of the active batch, (B, C, H, W)."""
        return self.site.pretrained.inputs_of(self.active)

    @torch.no_grad()
    def _start_fresh_batch(self, optimizer: Optimizer) -> None:
        self.active.copy_(self._noise(self.active.normal_()))
        self.active.grad = None
        self.active_labels.random_(self.site.pretrained.num_classes)
        self.iteration = 0
        self._begin_plateau(optimizer)

    def _begin_plateau(self, optimizer: Optimizer) -> None:
        self._plateau = dict(FRESH_PLATEAU)
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = self.lr

    @torch.no_grad()
    def sample(self, count: int) -> Batch:
        """Return images (count, C, H, W) and labels, in shuffled epochs.

        Every available image is given once before any is given again. They are
        the bank's finished images without the held-out ones; before any is
        finished, the active batch as it stands.
        """
        index = self._places(self._next_indices(count))
        if self.filled:
            return self._labeled(self.images[index], self.labels[index])
        return self._labeled(self._made().detach()[index], self.active_labels[index])

    def _places(self, numbers: Tensor) -> Tensor:
        """Return where images to train on stand, by their numbers."""
        return numbers

    @property
    def _available(self) -> int:
        """Return how many images there are to train on; before any is finished, active ones."""
        # Where the active batch is the first and only one it holds held-out images, too.
        return min(self.filled or self.batch_size, self.trainable_count)

    def _next_indices(self, count: int) -> Tensor:
        available = self._available
        if available != self.available:
            self._shuffle(available)
        parts = []
        while count > 0:
            if self.cursor == self.available:
                self._shuffle(available)
            end = min(self.cursor + count, self.available)
            # A copy, since shuffling again for the next part overwrites the buffer.
            parts.append(self.permutation[self.cursor : end].clone())
            count -= end - self.cursor
            self.cursor = end
        return torch.cat(parts)

    def _shuffle(self, available: int) -> None:
        order = torch.randperm(available, device=self.permutation.device)
        self.permutation[:available] = order
        self.available = available
        self.cursor = 0

    @torch.no_grad()
    def collect(self, count: int) -> Batch:
        """Return finished images (N, C, H, W) and labels, evenly spaced, as many as there are."""
        if not self.filled:
            raise DataError("the image bank has no finished image yet")
        return self._spaced(count, self._available, self._places)

    def _spaced(
        self, count: int, available: int, places: Callable[[Tensor], Tensor] = lambda n: n
    ) -> Batch:
        # As whole numbers: float32 has too few digits for the places of a large bank.
        number = min(max(count, 0), available)
        index = torch.arange(number, device=self.labels.device) * available // max(number, 1)
        return self._labeled(self.images[places(index)], self.labels[places(index)])

    def held_out(self, count: int) -> Batch:
        """Return at most ``count`` of the held-out images (N, C, H, W) and labels, not copied.

        Raises:
            ConfigurationError: nothing is held out.
            DataError: the bank is not full yet.
        """
        if not self.held_out_count:
            raise ConfigurationError("data.holdout=0 holds no synthetic image out")
        if not self.full:
            raise DataError(
                f"held-out images are not synthesized yet: {self.filled} of {self.count} "
                f"are; they take {self.steps_to_fill} synthesis steps"
            )
        chosen = slice(self.trainable_count, self.trainable_count + max(count, 0))
        return self._labeled(self.images[chosen], self.labels[chosen])

    @torch.no_grad()
    def preview(self, count: int) -> Batch:
        """Return images (N, C, H, W) and labels from all of a full bank, evenly spaced.

        Before that, of the active batch as it stands, or of the one that was finished in the
        last step, whose place noise has taken.
        """
        if self.full:
            return self._spaced(count, self.filled)
        if self.filled and not self.iteration:
            start = self.filled - self.batch_size
            chosen = slice(start, min(start + count, self.filled))
            return self._labeled(self.images[chosen], self.labels[chosen])
        return self._labeled(self._made().detach()[:count].clone(), self.active_labels[:count])

    def get_extra_state(self) -> dict[str, Any]:
        """Return counters and plateau state as plain numbers, for ``state_dict``."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        return {**counters, "plateau": dict(self._plateau)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        for name in COUNTERS:
            setattr(self, name, int(state[name]))
        self._plateau = dict(state["plateau"])

    def save(self, path: str | Path) -> None:
        """Write the finished images and their labels to a safetensors file.

        Raises:
            DataError: no image is finished yet.
        """
        if not self.filled:
            raise DataError(f"{path}: the image bank has no finished image to save yet")
        finished = {"images": self.images[: self.filled], "labels": self.labels[: self.filled]}
        write_tensors(path, self.file_kind, finished)


def _checked(origin: str, tensors: dict[str, Tensor], site: Site) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a file, or say what is wrong with them."""
    if set(tensors) != {"images", "labels"}:
        raise DataError(f"{origin}: holds {sorted(tensors)}, not images and labels")
    shape, classes = tuple(site.pretrained.input_shape), site.pretrained.num_classes
    images, labels = tensors["images"], tensors["labels"]
    if tuple(images.shape[1:]) != shape or not len(images):
        raise DataError(
            f"{origin}: images have shape {tuple(images.shape)}, the network takes {('N', *shape)}"
        )
    if images.dtype != torch.float32 or labels.dtype != torch.int64:
        raise DataError(
            f"{origin}: images are {images.dtype} and labels {labels.dtype}, "
            "not torch.float32 and torch.int64"
        )
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{origin}: labels have shape {tuple(labels.shape)}, not {tuple(images.shape[:1])}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{origin}: labels lie in [{labels.min()}, {labels.max()}], "
            f"the network has classes 0 to {classes - 1}"
        )
    # In parts: a mask of the whole bank would take a quarter of its memory again.
    if not all(bool(part.isfinite().all()) for part in torch.split(images, 256)):
        raise DataError(f"{origin}: some pixels are NaN or infinite")
    return images, labels
