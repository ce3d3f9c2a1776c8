"""Weights from files that a stranger may have made: read without executing anything."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hast_lightning.errors import ModelError
from hast_lightning.files.archives import require_bounded
from hast_lightning.models.unpickling import read_tensors_beside_objects
from hast_lightning.models.weight_choice import COUNTER, Weights, find_weights, is_plain

_log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which published files keep a network's weights in a larger dictionary."""
PARALLEL_PREFIX = "module."
SAFETENSORS_SUFFIX = ".safetensors"
_NAMES_SHOWN = 3
_REASON_LENGTH = 120
# How the restricted unpickler of torch.load names what it refuses to import.
_REFUSED_IMPORT = re.compile(r"GLOBAL ([\w.]+)")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or of a torch checkpoint, on the CPU.

    A dictionary inside one of :data:`WRAPPERS` is unwrapped, and the prefix that DataParallel
    gives all names is taken off.

    Raises:
        ModelError: the file is missing, damaged, holds anything but tensors, or is a pickle
            that could execute code.
    """
    path = _existing(path)
    if path.suffix == SAFETENSORS_SUFFIX:
        return _state_dict_of(_read_safetensors(path), path)
    return _state_dict_of(_read_torch(path), path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a .safetensors file; empty for other files.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = _existing(path)
    if path.suffix != SAFETENSORS_SUFFIX:
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if path.is_file():
        return path
    what = "is a folder" if path.is_dir() else "does not exist"
    raise ModelError(
        f"the weights file {path} {what}; expected a {SAFETENSORS_SUFFIX} file or a torch "
        "state dict (model.checkpoint)"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> Any:
    try:
        require_bounded(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := _refused_import(error):
            raise ModelError(
                f"the weights file {path} is refused: it asks for {refused}, and reading it "
                "could execute code; save the state dict alone, best as .safetensors"
            ) from error
        # Its own message recommends to load the file without protection.
        raise _damaged(path, "not a pickle of tensors") from error
    except Exception as error:  # damaged bytes end in nearly any kind of exception there
        raise _damaged(path, error) from error


def _refused_import(error: BaseException | None) -> str | None:
    """Return what torch refused to import; none where it refused something else."""
    found = _REFUSED_IMPORT.search(str(error))
    return found and found[1]


def _damaged(path: Path, reason: BaseException | str) -> ModelError:
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    sentence = lines[0].split(". ")[0].rstrip(".")[:_REASON_LENGTH]
    return ModelError(f"the weights file {path} is damaged or of another format: {sentence}")


def _state_dict_of(content: Any, path: Path) -> dict[str, Tensor]:
    # Twice, for a wrapper inside another in any order; a malicious file may nest without end.
    for wrapper in WRAPPERS * 2:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"the weights file {path} holds no state dict")
    for name, value in content.items():
        if not is_plain(value):
            raise ModelError(
                f"the weights file {path} holds more than plain tensors: {name!r} is a "
                f"{type(value).__name__}"
            )
    names = [str(name) for name in content]
    prefix = PARALLEL_PREFIX if all(name.startswith(PARALLEL_PREFIX) for name in names) else ""
    return {str(name).removeprefix(prefix): value for name, value in content.items()}


def load_weights(
    network: nn.Module, path: str | Path, *, key: str | None = None, ignore_more: bool = False
) -> None:
    """Load the weights in ``path`` into ``network``; every name and every shape must fit.

    They may lie under any keys of the file, beside anything else, and their names may have any
    prefix in common. Objects in the file are passed over, and never made.

    Args:
        network: changed in place.
        path: a .safetensors file or a torch checkpoint.
        key: where the weights are, needed where the file has several that fit: keys and prefix
            joined by dots, all of them or some that follow each other.
        ignore_more: pass over names in the file that the network has not.

    Raises:
        ModelError: the file is missing or damaged; the weights belong to another architecture
            or to another number of classes, are not finite, or are several of which none is the
            usual one.
    """
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    found = _weights_in(_existing(path), own, key)
    if ignore_more:
        found = {name: value for name, value in found.items() if name in own}
    counters = {name for name in {*own, *found} if name.endswith(COUNTER)}
    _check_names(set(own) - counters, set(found) - counters, path)
    _check_shapes(own, found, path)
    _check_values(own, found, path)
    with torch.no_grad():
        for name in own.keys() & found.keys():
            own[name].copy_(found[name])


def _weights_in(path: Path, own: Mapping[str, Tensor], key: str | None) -> dict[str, Tensor]:
    """Return the weights in a file that fit a network, or else those that come closest."""
    content, refusal = _read_whole(path)
    found = find_weights(content, own)
    there = found if key is None else [weights for weights in found if weights.is_at(key)]
    fitting = [weights for weights in there if weights.fits(own)]
    if fitting:
        if refusal is not None:
            _log.warning(
                "the weights file %s asks for %s, which is not imported: only its tensors are read",
                path,
                _refused_import(refusal.__cause__) or "objects",
            )
        return _usual(fitting, path).tensors
    if refusal is not None:
        raise refusal
    if key is not None and not there:
        raise ModelError(
            f"model.checkpoint_key={key}: the weights file {path} has nothing there; it has "
            f"{_some([weights.key for weights in found if weights.key]) or 'no keys'}"
        )
    if not any(weights.tensors for weights in there):
        return _state_dict_of(content, path)
    return max(there, key=lambda weights: weights.shared(own)).tensors


def _read_whole(path: Path) -> tuple[Any, ModelError | None]:
    """Return what a file holds; where it also holds objects, why these are refused."""
    if path.suffix == SAFETENSORS_SUFFIX:
        return _read_safetensors(path), None
    try:
        return _read_torch(path), None
    except ModelError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        try:
            content = read_tensors_beside_objects(path)
        except ValueError:
            raise error from None
        return content, error


def _usual(fitting: Sequence[Weights], path: Path) -> Weights:
    """Return the first of the weights that fit, and say which others there are.

    Raises:
        ModelError: nothing tells which of them are meant.
    """
    first, *others = fitting
    others = [weights for weights in others if not weights.equals(first)]
    if not others:
        return first
    keys = " or ".join(f"model.checkpoint_key={weights.key}" for weights in others[:_NAMES_SHOWN])
    if others[0].rank == first.rank:
        raise ModelError(
            f"the weights file {path} has weights of this network at several places: choose one "
            f"with model.checkpoint_key={first.key} or {keys}"
        )
    _log.warning(
        "the weights file %s has weights of this network at several places: those at %s are "
        "taken%s, and %s takes others",
        path,
        first.key or "its top",
        "" if first.averaged == others[0].averaged else ", not the average over the training",
        keys,
    )
    return first


def _check_names(own: set[str], found: set[str], path: str | Path) -> None:
    parts = []
    if own - found:
        parts.append(f"it lacks {_some(sorted(own - found))}")
    if found - own:
        parts.append(f"it has {_some(sorted(found - own))}, which the network has not")
    if parts:
        raise ModelError(
            f"the weights file {path} is of another architecture: {' and '.join(parts)}"
        )


def _some(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(list(names)[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _check_shapes(own: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path) -> None:
    wrong = [name for name in own if name in found and found[name].shape != own[name].shape]
    if not wrong:
        return
    name = wrong[0]
    in_last_layer = all(_layer(other) == _layer(list(own)[-1]) for other in wrong)
    if in_last_layer and all(found[other].shape[1:] == own[other].shape[1:] for other in wrong):
        classes = found[name].shape[0] if found[name].dim() else 0
        raise ModelError(
            f"the weights file {path} is for {classes} classes, the network for "
            f"{own[name].shape[0]}: set model.num_classes={classes}"
        )
    raise ModelError(
        f"the weights file {path} is of another architecture: {name} has the shape "
        f"{tuple(found[name].shape)}, the network expects {tuple(own[name].shape)}"
    )


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _check_values(own: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path) -> None:
    for name in own.keys() & found.keys():
        value = found[name]
        if value.is_floating_point() != own[name].is_floating_point():
            raise ModelError(f"the weights file {path} has {name} as {value.dtype}, not as floats")
    broken = [name for name, value in found.items() if not value.isfinite().all()]
    if broken:
        raise ModelError(f"the weights file {path} has NaN or infinite values in {_some(broken)}")


def checksum(network: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and bytes of the state dict."""
    digest = hashlib.sha256()
    for name, value in _sorted_tensors(network.state_dict().items()):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)};".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sorted_tensors(items: Iterable[tuple[str, Any]]) -> list[tuple[str, Tensor]]:
    tensors = [(name, value) for name, value in items if isinstance(value, Tensor)]
    return sorted(tensors, key=lambda item: item[0])
