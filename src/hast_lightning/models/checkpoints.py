"""Weights from files that a stranger may have made: read without executing anything."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hast_lightning.errors import ModelError

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep a network's weights in a larger dictionary."""
PARALLEL_PREFIX = "module."
NAMES_SHOWN = 3


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch checkpoint, on the CPU.

    A dictionary inside one of :data:`WRAPPERS` is unwrapped and the prefix that
    DataParallel gives all names is taken off.

    Raises:
        ModelError: the file is missing, cut short, holds no weights, or is a pickle that
            would need to execute code.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"model.checkpoint={path} {what}: expected a file of weights")
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    else:
        content = _read_torch(path)
    return _state_dict_of(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.checkpoint={path} is not a whole safetensors file: {_first_line(error)}"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "weights_only" in str(error).lower():
            raise ModelError(
                f"model.checkpoint={path} holds more than tensors and would have to execute "
                "code to load: refused; save the state dict alone"
            ) from error
        raise ModelError(f"model.checkpoint={path} is not a torch checkpoint") from error
    except (RuntimeError, EOFError, OSError, BadZipFile, ValueError, KeyError) as error:
        raise ModelError(
            f"model.checkpoint={path} is not a whole torch checkpoint: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _state_dict_of(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"model.checkpoint={path} holds no state dict")
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"model.checkpoint={path} holds values that are not tensors")
    names = [str(name) for name in content]
    prefix = PARALLEL_PREFIX if all(name.startswith(PARALLEL_PREFIX) for name in names) else ""
    return {str(name)[len(prefix) :]: value for name, value in content.items()}


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load the weights in ``path`` into ``network``; every name and shape must fit.

    Raises:
        ModelError: as :func:`read_state_dict`; or the weights belong to another
            architecture or number of classes, or are not finite.
    """
    state = read_state_dict(path)
    expected = network.state_dict()
    # Weights saved by old versions of torch lack the counter of batches, which nothing uses.
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    _check_names(set(expected) - counters, set(state) - counters, path)
    _check_shapes(expected, state, path)
    broken = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ModelError(f"model.checkpoint={path} has NaN or infinite values in {broken[0]}")
    network.load_state_dict(
        {name: v for name, v in state.items() if name in expected}, strict=False
    )


def _check_names(expected: set[str], found: set[str], path: str | Path) -> None:
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        parts = [
            f"{kind} {', '.join(names[:NAMES_SHOWN])}{' ...' if len(names) > NAMES_SHOWN else ''}"
            for kind, names in (("without", missing), ("with unexpected", unexpected))
            if names
        ]
        raise ModelError(
            f"model.checkpoint={path} is of another architecture: {' and '.join(parts)}"
        )


def _check_shapes(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path
) -> None:
    wrong = [n for n in expected if n in found and found[n].shape != expected[n].shape]
    if not wrong:
        return
    last = wrong[-1].rsplit(".", 1)[0]
    if all(name.rsplit(".", 1)[0] == last for name in wrong):
        raise ModelError(
            f"model.checkpoint={path} has {found[wrong[0]].shape[0]} classes, the network "
            f"{expected[wrong[0]].shape[0]}: set model.num_classes"
        )
    name = wrong[0]
    raise ModelError(
        f"model.checkpoint={path} is of another architecture: {name} has the shape "
        f"{tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
    )


def checksum(network: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of the state dict, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)};".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
