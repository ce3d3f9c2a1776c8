"""A bank of images that are themselves the parameters (HAST's released form).

One batch at a time is optimized, starting from noise; when it has had its
steps it is written to the bank and replaced by fresh noise. Once the bank is
full, the oldest batch is the next to be replaced.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hast_lightning.config import ImageBankConfig
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.ranks import gathered
from hast_lightning.synthesis.source import read_tensors, write_tensors

FILE_KIND = "image-bank"
COUNTERS = ("iteration", "position", "filled", "available", "cursor")
FRESH_PLATEAU: dict[str, float] = {
    "best": float("inf"),
    "num_bad_epochs": 0,
    "cooldown_counter": 0,
    "last_epoch": 0,
}
"""The part of a ReduceLROnPlateau that changes, as it is before its first step."""


class ImageBank(nn.Module):
    """Images and labels, of which one batch is being optimized (HAST).

    Defaults of the released form: start N(0, 1), Adam with learning rate 0.5
    reduced on plateaus, 1000 iterations a batch of 256, 5120 images in all,
    labels uniform.

    Args:
        config: sizes and optimizer settings.
        input_shape: channels, height and width of an image.
        num_classes: labels are drawn from ``range(num_classes)``.
        holdout: share of the bank, its last images, that :meth:`sample` never
            gives; at least one image where it is not zero.
        world_size: ranks that fill the bank together, each with batches of its own; all
            have the whole bank in the end.

    Raises:
        ConfigurationError: the hold-out leaves no image to train on, or the bank cannot be
            divided among the ranks.
    """

    shared = False

    images: Tensor
    labels: Tensor
    active_labels: Tensor
    permutation: Tensor

    def __init__(
        self,
        config: ImageBankConfig,
        input_shape: tuple[int, int, int],
        num_classes: int,
        holdout: float = 0.0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        if config.size % (config.batch_size * world_size):
            raise ConfigurationError(
                f"synthesis.bank.size={config.size} must be a multiple of "
                f"synthesis.bank.batch_size={config.batch_size} times the {world_size} processes"
            )
        self.config = config
        self.world_size = world_size
        self.num_classes = num_classes
        self.held_out_count = max(1, round(holdout * config.size)) if holdout > 0 else 0
        self.trainable_count = config.size - self.held_out_count
        if self.trainable_count < 1:
            raise ConfigurationError(
                f"data.holdout={holdout} leaves nothing to train on of "
                f"synthesis.bank.size={config.size}"
            )
        self.active = nn.Parameter(torch.randn(config.batch_size, *input_shape))
        self.register_buffer("active_labels", torch.randint(num_classes, (config.batch_size,)))
        self.register_buffer("images", torch.zeros(config.size, *input_shape))
        self.register_buffer("labels", torch.zeros(config.size, dtype=torch.int64))
        # Of fixed length, so that checkpoints of any moment fit; the first `available` count.
        self.register_buffer("permutation", torch.zeros(self.trainable_count, dtype=torch.int64))
        self.iteration = 0  # optimizer steps that the active batch has had
        self.position = 0  # where in the bank the active batch will be written
        self.filled = 0  # images written to the bank
        self.available = 0  # images that the current epoch of sample() shuffles
        self.cursor = 0  # how many of them it has given
        self._plateau = dict(FRESH_PLATEAU)

    @property
    def steps_to_fill(self) -> int:
        """Optimizer steps after which every image of the bank was made once."""
        batches = self.config.size // (self.config.batch_size * self.world_size)
        return batches * self.config.iterations

    @property
    def steps_to_start(self) -> int:
        """Optimizer steps after which the first batch is finished; zero if one was loaded."""
        return 0 if self.filled else self.config.iterations

    @property
    def full(self) -> bool:
        """Whether every image of the bank was made."""
        return self.filled == self.config.size

    def propose(self) -> tuple[Tensor, Tensor]:
        """Return the active batch: images (B, C, H, W), a parameter, and labels (B,)."""
        return self.active, self.active_labels

    @torch.no_grad()
    def part_ways(self) -> None:
        """Draw the active batch afresh, from this rank's streams."""
        self.active.normal_()
        self.active_labels.random_(self.num_classes)

    def own_state(self) -> dict[str, Any]:
        """The active batch, its plateau, and where this rank is in its epoch."""
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

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return Adam over the active batch, which stays the same parameter throughout."""
        return torch.optim.Adam([self.active], lr=self.config.lr)

    def improved(self, loss: float, optimizer: torch.optim.Optimizer) -> None:
        """Reduce the learning rate on a plateau, and move on when the batch had its steps.

        Raises:
            FloatingPointError: the batch had its steps and is NaN or infinite; it is not stored.
        """
        # Lightning hands out wrappers that read through to the optimizer but do not write.
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self._step_plateau(loss, optimizer)
        self.iteration += 1
        if self.iteration == self.config.iterations:
            self._store_active_batch()
            self._start_fresh_batch(optimizer)

    def _step_plateau(self, loss: float, optimizer: torch.optim.Optimizer) -> None:
        config = self.config
        if config.factor == 1:  # torch refuses it; it means a constant rate
            return
        # Rebuilt from plain numbers at every step: they are what a checkpoint can hold.
        plateau = ReduceLROnPlateau(
            optimizer, factor=config.factor, patience=config.patience, min_lr=config.min_lr
        )
        plateau.load_state_dict(self._plateau)
        plateau.step(loss)
        state = plateau.state_dict()
        self._plateau = {name: state[name] for name in FRESH_PLATEAU}

    @torch.no_grad()
    def _store_active_batch(self) -> None:
        # Every rank finishes a batch in the same step.
        images, labels = gathered(self.active), gathered(self.active_labels)
        if not bool(images.isfinite().all()):
            raise FloatingPointError("finished images are NaN or infinite")
        end = self.position + len(images)
        # Once they are there, held-out images stay: what is measured on them must compare.
        last = min(end, self.trainable_count) if self.full else end
        count = max(last - self.position, 0)
        self.images[self.position : self.position + count].copy_(images[:count])
        self.labels[self.position : self.position + count].copy_(labels[:count])
        self.filled = max(self.filled, end)
        self.position = end % self.config.size

    @torch.no_grad()
    def _start_fresh_batch(self, optimizer: torch.optim.Optimizer) -> None:
        self.active.normal_()
        self.active.grad = None
        self.active_labels.random_(self.num_classes)
        self.iteration = 0
        self._plateau = dict(FRESH_PLATEAU)
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = self.config.lr

    @torch.no_grad()
    def sample(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return images (batch_size, C, H, W) and labels, in shuffled epochs.

        Every available image is given once before any is given again. They are
        the bank's finished images without the held-out ones; before any is
        finished, the active batch as it stands.
        """
        index = self._next_indices(batch_size)
        if self.filled:
            return self.images[index], self.labels[index]
        return self.active.detach()[index], self.active_labels[index]

    def _next_indices(self, count: int) -> Tensor:
        # Where the active batch is the first and only one it holds held-out images, too.
        available = min(self.filled or self.config.batch_size, self.trainable_count)
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

    def held_out(self, count: int) -> tuple[Tensor, Tensor]:
        """Return at most ``count`` of the held-out images (N, C, H, W) and labels, not copied.

        Raises:
            ConfigurationError: nothing is held out.
            DataError: the bank is not full yet.
        """
        if not self.held_out_count:
            raise ConfigurationError("data.holdout=0 holds no synthetic image out")
        if not self.full:
            raise DataError(
                f"held-out images are not synthesized yet: {self.filled} of {self.config.size} "
                f"are; schedule.synthesis_steps must be at least {self.steps_to_fill}"
            )
        chosen = slice(self.trainable_count, self.trainable_count + max(count, 0))
        return self.images[chosen], self.labels[chosen]

    @torch.no_grad()
    def preview(self, count: int) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) and labels from all of a full bank, evenly spaced.

        Before that, of the active batch as it stands, or of the one that was finished in the
        last step, whose place noise has taken.
        """
        if self.full:
            # As whole numbers: float32 has too few digits for the places of a large bank.
            number = min(count, self.filled)
            index = torch.arange(number, device=self.labels.device) * self.filled // number
            return self.images[index], self.labels[index]
        if self.filled and not self.iteration:
            start = self.filled - self.config.batch_size
            chosen = slice(start, min(start + count, self.filled))
            return self.images[chosen], self.labels[chosen]
        return self.active.detach()[:count].clone(), self.active_labels[:count]

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
        write_tensors(path, FILE_KIND, finished)

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: ImageBankConfig,
        input_shape: tuple[int, int, int],
        num_classes: int,
        holdout: float = 0.0,
    ) -> ImageBank:
        """Read a saved bank; it is full, and the file decides its size, not ``config.size``.

        Raises:
            DataError: the file is missing, unreadable, or does not fit the network.
            ConfigurationError: the hold-out leaves no image to train on.
        """
        tensors, _ = read_tensors(path, FILE_KIND)
        images, labels = _checked(path, tensors, input_shape, num_classes)
        size = len(images)
        if size % config.batch_size:
            raise DataError(
                f"synthesis.load={path}: holds {size} images, not a multiple of "
                f"synthesis.bank.batch_size={config.batch_size}"
            )
        bank = cls(replace(config, size=size), input_shape, num_classes, holdout)
        bank.images, bank.labels, bank.filled = images, labels, size
        return bank


def _checked(
    path: str | Path, tensors: dict[str, Tensor], input_shape: tuple[int, int, int], classes: int
) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a file, or say what is wrong with them."""
    if set(tensors) != {"images", "labels"}:
        raise DataError(f"synthesis.load={path}: holds {sorted(tensors)}, not images and labels")
    images, labels = tensors["images"], tensors["labels"]
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(input_shape) or not len(images):
        raise DataError(
            f"synthesis.load={path}: images have shape {tuple(images.shape)}, "
            f"the network takes {('N', *input_shape)}"
        )
    if images.dtype != torch.float32 or labels.dtype != torch.int64:
        raise DataError(
            f"synthesis.load={path}: images are {images.dtype} and labels {labels.dtype}, "
            "not torch.float32 and torch.int64"
        )
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"synthesis.load={path}: labels have shape {tuple(labels.shape)}, "
            f"not {tuple(images.shape[:1])}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"synthesis.load={path}: labels lie in [{labels.min()}, {labels.max()}], "
            f"the network has classes 0 to {classes - 1}"
        )
    # In parts: a mask of the whole bank would take a quarter of its memory again.
    if not all(bool(part.isfinite().all()) for part in torch.split(images, 256)):
        raise DataError(f"synthesis.load={path}: some pixels are NaN or infinite")
    return images, labels
