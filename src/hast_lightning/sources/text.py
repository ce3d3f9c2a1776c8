"""Text for networks of tokens: of the network's own, random tokens, and the user's.

Samples are ids (N, length), int64, and have no labels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import MISSING
from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import expand_home, require_range
from hast_lightning.core.network import TOKENS
from hast_lightning.core.part import part
from hast_lightning.core.source import HELD_OUT_SEED, Site, Source
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.files.tensors import read_tensors, write_tensors
from hast_lightning.files.token_ids import read_token_ids
from hast_lightning.graph.own_text import temperatures, write_text
from hast_lightning.runtime.ranks import rank, world_size

KIND = "texts"


@dataclass(eq=False, repr=False, kw_only=True)
class Texts(Source):
    """Base class: a number of texts that are made once, when the first is asked for.

    Batches go through them in a random order, anew when all were given.
    """

    size: int = 128
    """Texts to train and calibrate on."""

    label_kind = "none"
    modalities = (TOKENS,)
    texts: ClassVar[Tensor]
    order: ClassVar[Tensor]
    seed: ClassVar[Tensor]
    place: ClassVar[Tensor]

    def __post_init__(self) -> None:
        self.load = expand_home(self.load)
        require_range("size", self.size, 1)

    def build(self, site: Site) -> None:
        """Make room for the texts, and draw the seed that they are made by."""
        super().build(site)
        network = site.pretrained
        self.register_buffer("place", torch.zeros(()), persistent=False)
        self.register_buffer("seed", torch.randint(2**31, ()))
        # Empty until they are made, which a checkpoint has to tell.
        self.register_buffer("texts", torch.zeros(0, *network.input_shape, dtype=torch.int64))
        self.register_buffer("order", torch.zeros(0, dtype=torch.int64))
        self._held: tuple[tuple[int, torch.device], Tensor] | None = None

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("texts", "order"):
            saved = state.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=self.place.device))
        super()._load_from_state_dict(state, prefix, *args)

    @abstractmethod
    def make(self, count: int, generator: torch.Generator) -> Tensor:
        """Return texts (count, length), int64, on the device of ``generator``."""

    @property
    def most(self) -> int | None:
        """Return the texts that are made; what a file has is not known before it is read."""
        return None if self.load else self.size

    def sample(self, count: int) -> Batch:
        """Return the next texts (count, length) of an order that is drawn anew where it ends."""
        texts, left = self._all(), self.order
        while len(left) < count:
            left = torch.cat([left, torch.randperm(len(texts)).to(left.device)])
        self.register_buffer("order", left[count:])
        return Batch(texts[left[:count]])

    def collect(self, count: int) -> Batch:
        """Return the first texts, ``count`` or as many as there are."""
        return Batch(self._all()[:count])

    def held_out(self, count: int) -> Batch:
        """Return other texts than those that are trained on, always the same."""
        made_by = (int(self.seed), self.place.device)
        if self._held is None or self._held[0] != made_by:
            # All at once: their number decides what is drawn for each.
            generator = self._generator(made_by[0] ^ HELD_OUT_SEED)
            self._held = (made_by, self.make(self._share(), generator))
        return Batch(self._held[1][: max(count, 0)])

    def preview(self, count: int) -> Batch:
        """Return the first texts to look at."""
        return self.collect(count)

    def part_ways(self) -> None:
        """Draw another seed, so that this rank has texts of its own."""
        self.seed.copy_(torch.randint(2**31, ()))

    def own_state(self) -> dict[str, Any]:
        """Return what this rank has."""
        return {name: getattr(self, name).cpu() for name in ("seed", "texts", "order")}

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        for name, value in state.items():
            setattr(self, name, value.to(self.place.device))

    def save(self, path: str | Path) -> None:
        """Write the texts to a file that ``load`` accepts.

        Raises:
            DataError: none were asked for, so there are none.
        """
        if not len(self.texts):
            raise DataError(f"{path}: no stage asked for a text of {self.site.key}")
        write_tensors(path, KIND, {"texts": self.texts.cpu()})

    def _all(self) -> Tensor:
        if not len(self.texts):
            texts = self._loaded() if self.load else self.make(self.size, self._generator())
            self.register_buffer("texts", texts.to(self.place.device))
        return self.texts

    def _loaded(self) -> Tensor:
        assert self.load is not None
        tensors, _ = read_tensors(self.load, KIND, f"{self.site.key}.load")
        texts, length = tensors["texts"], self.site.pretrained.length
        if texts.dim() != 2 or texts.shape[1] != length or texts.dtype != torch.int64:
            raise DataError(
                f"{self.site.key}.load={self.load}: texts of shape {tuple(texts.shape)} "
                f"({texts.dtype}); the network takes {length} tokens"
            )
        if not len(texts) or int(texts.min()) < 0 or int(texts.max()) >= self._vocabulary:
            raise DataError(
                f"{self.site.key}.load={self.load}: no texts, or ids that are none of the "
                f"network's {self._vocabulary} tokens"
            )
        return texts[: self.size]

    @property
    def _vocabulary(self) -> int:
        return self.site.pretrained.num_classes

    def _share(self) -> int:
        return max(1, round(self.size * self.site.holdout))

    def _generator(self, seed: int | None = None) -> torch.Generator:
        """Return random numbers of the source's own, on its device."""
        generator = torch.Generator(self.place.device)
        return generator.manual_seed(int(self.seed) if seed is None else seed)


@part("source", "own_text")
class OwnText(Texts):
    """Text that the full-precision network writes itself, from its start token on.

    The temperature moves linearly over the first tokens and stays from there on.

    Source: self-calibration (Williams, Chrysostomou and Aletras, NAACL 2025, arXiv 2410.17170);
    that the network writes the text is of its abstract, the form of the schedule from memory. Its
    constants were not found: these are ours.
    """

    initial_temperature: float = 1.0
    """Temperature of the first token, which logits are divided by."""
    final_temperature: float = 1.0
    """Temperature of the last ones."""
    schedule_tokens: int = 0
    """Tokens over which the temperature moves."""
    batch_size: int = 128
    """Texts that are written together, which a cache has to have room for."""
    start_token: int = 1
    """Id that begins every text, as in the network's training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("initial_temperature", "final_temperature"):
            # Logits that are divided by less leave float32.
            require_range(name, getattr(self, name), 1e-4, 100)
        require_range("batch_size", self.batch_size, 1)
        require_range("schedule_tokens", self.schedule_tokens, 0)
        require_range("start_token", self.start_token, 0)
        fixed = self.initial_temperature in (1.0, self.final_temperature)
        if not self.schedule_tokens and not fixed:
            raise ConfigurationError(
                f"initial_temperature={self.initial_temperature} with schedule_tokens=0: no token "
                "would have it; set schedule_tokens, or final_temperature alone"
            )

    def unused(self) -> Collection[str]:
        """Return the first temperature where all tokens have the last one."""
        return () if self.schedule_tokens else ("initial_temperature",)

    def build(self, site: Site) -> None:
        """Make room for the texts.

        Raises:
            ConfigurationError: the network does not know the start token.
        """
        super().build(site)
        if self.start_token >= self._vocabulary:
            raise ConfigurationError(
                f"{site.key}.start_token={self.start_token}: the network {site.pretrained.name} "
                f"knows 0 to {self._vocabulary - 1}"
            )

    def make(self, count: int, generator: torch.Generator) -> Tensor:
        """Return texts (count, length) that the network wrote."""
        length = self.site.pretrained.length
        heat = temperatures(
            length - 1, self.initial_temperature, self.final_temperature, self.schedule_tokens
        )
        network, start = self.site.pretrained, self.start_token
        return write_text(network, count, heat, start, generator, self.batch_size)


@part("source", "random_tokens")
class RandomTokens(Texts):
    """Tokens of which each is drawn uniformly: the lower end of every comparison of texts."""

    def make(self, count: int, generator: torch.Generator) -> Tensor:
        """Return tokens (count, length)."""
        shape = (count, *self.site.pretrained.input_shape)
        device = generator.device
        return torch.randint(self._vocabulary, shape, generator=generator, device=device)


@part("source", "text_file")
class TextFile(Texts):
    """Texts of the user's, drawn from a file of token ids: the upper end, and not zero-shot.

    Rows have to fill the network's input; others are left out.
    """

    path: str = MISSING
    """An .npz file with ``x``, integers (texts, tokens); -1 ends a row that is shorter."""

    synthetic = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path != MISSING:
            self.path = str(expand_home(self.path))

    def build(self, site: Site) -> None:
        """Read the file.

        Raises:
            ConfigurationError: there is no path, or a process would have no text.
            DataError: the file cannot be read, or has too few whole rows.
        """
        super().build(site)
        if self.path == MISSING:
            raise ConfigurationError(f"{site.key}.path is not set: the file of token ids")
        origin, length = f"{site.key}.path={self.path}", site.pretrained.length
        ids = read_token_ids(Path(self.path), length, self._vocabulary, origin)
        whole = ids[(ids >= 0).all(axis=1)]
        needed = self.size + (self._share() if site.holdout else 0)
        if len(whole) < needed:
            raise DataError(
                f"{origin}: {len(whole)} rows have {length} tokens, and {needed} are needed "
                f"({site.key}.size, data.holdout)"
            )
        if self.size < site.processes:
            raise ConfigurationError(
                f"{site.key}.size={self.size}: too few texts for {site.processes} processes"
            )
        self._whole = torch.from_numpy(np.ascontiguousarray(whole))

    def make(self, count: int, generator: torch.Generator) -> Tensor:
        """Return this rank's share of rows (count, length) of the file, none twice."""
        order = torch.randperm(len(self._whole), generator=self._drawn())
        own = order[:count][rank() :: world_size()]
        return self._whole[own].to(generator.device)

    def part_ways(self) -> None:
        """Keep the seed, so that no rank trains on what others hold out."""

    def held_out(self, count: int) -> Batch:
        """Return rows behind those that are trained on.

        Raises:
            DataError: there are none.
        """
        if len(self._whole) <= self.size:
            raise DataError(f"{self.site.key}: all rows of {self.path} are trained on")
        order = torch.randperm(len(self._whole), generator=self._drawn())
        rows = order[self.size :][: min(count, self._share())]
        return Batch(self._whole[rows].to(self.place.device))

    def _drawn(self) -> torch.Generator:
        # On the CPU, whatever the device: the rows are the same.
        return torch.Generator().manual_seed(int(self.seed))
