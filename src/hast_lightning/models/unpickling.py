"""Tensors out of a checkpoint that also holds objects, of which none is made."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

TENSOR_MAKERS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}
"""All that is ever called for by name; it makes tensors and dictionaries of them."""
ZIP_MAGIC = b"PK\x03\x04"
"""How torch tells its archives from files of an older layout."""
SCRIPT_RECORD = "constants.pkl"
"""What only an archive of TorchScript has, which torch would open as a program."""


class Inert:
    """In place of an object, whatever its class: it takes all that it is given and keeps nothing.

    A pickle calls what it names, sets its state and fills it; each of these ends here.
    """

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Take the arguments that an object would be made of."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """Be what a function would return."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep nothing."""

    def append(self, value: Any) -> None:
        """Keep nothing."""

    def extend(self, values: Any) -> None:
        """Keep nothing."""

    def add(self, value: Any) -> None:
        """Keep nothing."""


class TensorUnpickler(pickle.Unpickler):
    """Imports nothing: names stand for what makes tensors, or for :class:`Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call under this name."""
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        return TENSOR_MAKERS.get((module, name), Inert)


def read_tensors_beside_objects(path: Path) -> Any:
    """Read what ``torch.save`` wrote, with :class:`Inert` in place of every object.

    Nothing that the file names is imported or called, so nothing in it is executed.

    Raises:
        ValueError: the file has another layout, or is damaged.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            raise ValueError("not an archive of torch.save")
    # What torch.load asks of a module for pickles.
    restricted = SimpleNamespace(
        __name__="restricted", Unpickler=TensorUnpickler, load=_refuse_old_layout
    )
    try:
        # By torch's own reader: another one might see other records in a damaged archive.
        if SCRIPT_RECORD in torch._C.PyTorchFileReader(str(path)).get_all_records():
            raise ValueError("an archive of TorchScript")
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=restricted)
    except Exception as error:  # damaged bytes end in nearly any kind of exception there
        raise ValueError(str(error) or type(error).__name__) from error


def _refuse_old_layout(*_: Any, **__: Any) -> Any:
    raise ValueError("not an archive of torch.save")
