"""Find a network's weights in a checkpoint, under whatever keys its training script chose."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module"),
    *("net", "network", "weights", "params", "backbone"),
)
"""Keys under which training scripts keep a network's weights, the usual ones first."""
AVERAGES = frozenset({"ema", "swa", "average", "averaged", "averaging", "avg", "shadow"})
"""Words in the keys of weights that are an average over the steps of a training."""
INSERTED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Segments that compiling and wrapping put into names, anywhere."""
COUNTER = "num_batches_tracked"
"""The counter of batches, which nothing uses and which old files lack."""
DEEPEST = 4
MOST = 256
"""Mappings that are looked at: a malicious file may nest without end."""


@dataclass(frozen=True)
class Weights:
    """Tensors of a file that may be a network's.

    Attributes:
        key: Where they are: keys and the prefix of the names, joined by dots; empty: the file.
        tensors: By the names without the prefix.
    """

    key: str
    tensors: dict[str, Tensor]

    @property
    def words(self) -> list[str]:
        """Return the segments of the key."""
        return self.key.split(".") if self.key else []

    @property
    def averaged(self) -> bool:
        """Return whether they are an average over the steps of a training, by their key."""
        return any(AVERAGES & set(re.split(r"[_\W]+", word.lower())) for word in self.words)

    @property
    def rank(self) -> tuple[bool, Sequence[int]]:
        """Return what is taken first: plain weights, under the most usual keys."""
        usual = [WRAPPERS.index(word) if word in WRAPPERS else len(WRAPPERS) for word in self.words]
        return self.averaged, usual

    def is_at(self, key: str) -> bool:
        """Return whether ``key`` says all or a part of the place, whole segments of it."""
        return f".{key}." in f".{self.key}."

    def fits(self, own: Mapping[str, Tensor]) -> bool:
        """Return whether there are all names of ``own``, as plain tensors of the same shapes."""
        return all(
            name in self.tensors
            and is_plain(self.tensors[name])
            and self.tensors[name].shape == value.shape
            for name, value in own.items()
            if not name.endswith(COUNTER)
        )

    def equals(self, other: Weights) -> bool:
        """Return whether others are the same, value by value."""
        return self.tensors.keys() == other.tensors.keys() and all(
            torch.equal(value, other.tensors[name]) for name, value in self.tensors.items()
        )

    def shared(self, own: Collection[str]) -> int:
        """Return how many names of ``own`` there are."""
        return sum(name in self.tensors for name in own)


def is_plain(value: Any) -> bool:
    """Return whether a value is a tensor that is neither sparse nor quantized."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def find_weights(content: Any, own: Collection[str]) -> list[Weights]:
    """List what in a file may be the weights of a network, the most usual place first.

    Args:
        content: Of the file; mappings in it are searched, and objects passed over.
        own: The names that the network has.
    """
    keep = any(INSERTED.search(name) for name in own)
    found = []
    for path, mapping in _mappings(content):
        tensors = {
            name if keep else INSERTED.sub("", name): value
            for name, value in mapping.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
        for prefix in _prefixes(tensors, own):
            key = ".".join([*path, prefix.rstrip(".")]).strip(".")
            rest = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
            found.append(Weights(key, rest))
    return sorted(found, key=lambda weights: weights.rank)


def _mappings(content: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield the mappings in a file with their keys, the outermost first."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for number, (path, value) in enumerate(waiting):
        if number >= MOST:
            return
        if isinstance(value, Mapping):
            yield path, value
            if len(path) < DEEPEST:
                named = ((key, part) for key, part in value.items() if isinstance(key, str))
                waiting += [((*path, key), p) for key, p in named if isinstance(p, Mapping)]


def _prefixes(names: Collection[str], own: Collection[str]) -> Collection[str]:
    """Return what stands before most names of the network's, and what all names begin with.

    Each once and in the order of the file, so that every process finds the same place first.
    """
    ends = {name for name in own if not name.endswith(COUNTER)}
    before = Counter(prefix for name in names for prefix, end in _cut(name) if end in ends)
    most = max(before.values(), default=0)
    most_frequent = [prefix for prefix, count in before.items() if count == most]
    return dict.fromkeys([*most_frequent, *_common(names)])


def _cut(name: str) -> Iterator[tuple[str, str]]:
    """Yield a name cut in two, before each of its segments."""
    words = name.split(".")
    for count in range(len(words)):
        yield "".join(f"{word}." for word in words[:count]), ".".join(words[count:])


def _common(names: Collection[str]) -> Iterator[str]:
    """Yield the beginnings, in whole segments, that all names share; the empty one, too."""
    if names:
        first, last = min(names).split("."), max(names).split(".")
        yield ""
        for count in range(1, len(first)):
            if first[:count] != last[:count]:
                return
            yield ".".join(first[:count]) + "."
