"""The packed checkpoint: a safetensors file whose weights take ``bits`` bits each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx, nn

from hast_lightning.errors import ModelError, first_line
from hast_lightning.export import architecture
from hast_lightning.export.description import METADATA_KEY, Description, compact_json
from hast_lightning.export.frozen import WEIGHT, frozen_layers
from hast_lightning.export.packing import pack, unpack

ARCHITECTURE_KEY = "architecture"
_INTEGERS = f".{WEIGHT}.integers"
_ZERO_POINT = ".zero_point"
_COUNTER = ".num_batches_tracked"
_INTEGER_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def require_storable(network: fx.GraphModule) -> None:
    """Refuse a frozen network that a packed checkpoint cannot describe.

    Raises:
        ModelError: it has a layer or calls a function that is not in the vocabulary, or names that
            a file may not have.
    """
    architecture.build(_parse(compact_json(architecture.describe(network))))


def write_packed(network: fx.GraphModule, description: Description, path: Path) -> None:
    """Write a frozen network.

    The integers of a layer are one tensor ``<layer>.quantized_weight.integers`` of bytes (see
    :func:`~hast_lightning.export.packing.pack`); zero points are stored in the smallest integer
    type that holds them, everything else in float32.

    Raises:
        ModelError: see :func:`require_storable`.
    """
    metadata = {
        METADATA_KEY: description.to_json(),
        ARCHITECTURE_KEY: compact_json(architecture.describe(network)),
    }
    bits, state = _bits(network), _state(network)
    tensors = {
        name: pack(value, bits[name]) if name in bits else _stored(name, value)
        for name, value in state.items()
    }
    # Not save_file, whose files are readable to their owner alone.
    path.write_bytes(save(tensors, metadata))


def read_packed(path: Path) -> tuple[fx.GraphModule, Description]:
    """Return the frozen network in a file that :func:`write_packed` wrote, and its description.

    Nothing in the file is executed, whoever made it.

    Raises:
        ModelError: the file is missing or damaged, or is no packed checkpoint.
    """
    metadata, tensors = _read(path)
    description = Description.from_metadata(metadata, str(path))
    if ARCHITECTURE_KEY not in metadata:
        raise ModelError(f"{path} is no packed checkpoint: it has no {ARCHITECTURE_KEY}")
    try:
        network = architecture.build(_parse(metadata[ARCHITECTURE_KEY]))
        _load(network, tensors)
    except ModelError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return network, description


def packed_files(folder: Path) -> list[Path]:
    """Return the packed checkpoints in a folder, by name, without files that cannot be read."""
    return [path for path in sorted(folder.glob("*.safetensors")) if _is_packed(path)]


def _is_packed(path: Path) -> bool:
    # A folder may hold samples and others' weights, too.
    try:
        with safe_open(path, framework="pt") as file:
            return ARCHITECTURE_KEY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def _bits(network: nn.Module) -> dict[str, int]:
    """Return the bits of each tensor that is packed, by name: weights, and masks of one bit."""
    found = {n + _INTEGERS: layer.quantized_weight.bits for n, layer in frozen_layers(network)}
    masks = {n: 1 for n, value in network.state_dict().items() if value.dtype == torch.bool}
    return {**found, **masks}


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers; without the counters of batches, which nothing uses."""
    state = network.state_dict()
    return {name: value for name, value in state.items() if not name.endswith(_COUNTER)}


def _stored(name: str, value: Tensor) -> Tensor:
    if name.endswith(_ZERO_POINT):
        return value.to(_smallest_type(value))
    # A copy: safetensors refuses tensors that share their memory.
    return value.detach().clone().contiguous()


def _smallest_type(value: Tensor) -> torch.dtype:
    """Return the smallest integer type that holds integer-valued floats, or else their own."""
    if not bool((value == value.round()).all()):
        return value.dtype  # one half, of weights of one bit
    low, high = value.aminmax()
    for dtype in _INTEGER_TYPES[:-1]:
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return dtype
    # Next to 2^63 a float32 is not exact in an int64 either.
    return torch.int64 if float(value.abs().max()) < 2**62 else value.dtype


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), tensors
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise ModelError(f"{path} is damaged or no safetensors file: {reason}") from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"its architecture is no JSON: {error}") from error


def _load(network: fx.GraphModule, tensors: dict[str, Tensor]) -> None:
    """Give ``network``, which is on the device ``meta``, the tensors of the file."""
    own = _state(network)
    if own.keys() != tensors.keys():
        names = sorted(own.keys() ^ tensors.keys())
        raise ModelError(f"its tensors do not fit its architecture, for example {names[0]}")
    bits = _bits(network)
    counters = {
        name: torch.zeros((), dtype=torch.int64) for name in network.state_dict().keys() - own
    }
    loaded: dict[str, Tensor] = {}
    for name, target in own.items():
        value = tensors[name]
        if name in bits:
            value = unpack(value, bits[name], target.numel()).view(target.shape)
        if value.shape != target.shape or not value.isfinite().all():
            raise ModelError(
                f"{name} has another shape than its architecture says, or is not finite"
            )
        loaded[name] = value.to(target.dtype)
    network.load_state_dict(loaded | counters, assign=True)
    network.requires_grad_(False)
