"""The arguments of ``quantize``, each checked and in the words of the configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hast_lightning.api.overrides import concerns
from hast_lightning.config import config_folder
from hast_lightning.config.literals import as_overrides, literal
from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.records.folder import CONFIG_FILE

InputShape = int | tuple[int, int, int] | tuple[int, int]
BitsOfLayers = int | tuple[int | None, int | None] | str
"""Bits of weights and activations: one number for both, two numbers, or ``w4a8``. None, which is
32, is floating point."""
Bits = BitsOfLayers | Mapping[str, BitsOfLayers]
ALL_LAYERS = "*"
BITS_IN_A_WORD = re.compile(r"w(\d+)a(\d+)", re.IGNORECASE | re.ASCII)
ARCHIVE_SUFFIX = ".npz"
FILE_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors", ".onnx", ".pt2")
ACCELERATORS = {"cuda": "gpu"}
"""Types of devices that Lightning calls otherwise."""
LIBRARIES = ("torchvision", "timm", "pytorchcv")
"""Libraries whose networks are named by the library and their own name."""


def network_settings(
    network: nn.Module | str,
    num_classes: int | None,
    mean: Any,
    std: Any,
    class_names: Sequence[str] | None,
) -> Iterator[str]:
    """Yield the settings that say where the network comes from and what the user says of it.

    Raises:
        ConfigurationError: an argument is of the wrong type.
    """
    facts: dict[str, Any] = {
        "num_classes": None if num_classes is None else _integer("num_classes", num_classes),
        "mean": None if mean is None else _numbers("mean", mean),
        "std": None if std is None else _numbers("std", std),
        "class_names": None if class_names is None else _names(class_names),
    }
    known: dict[str, Any] = {name: value for name, value in facts.items() if value is not None}
    if isinstance(network, nn.Module):
        yield "model=own"
        known = {"provider": "given", "name": type(network).__name__, **known}
    elif isinstance(network, str) and network:
        if Path(network).suffix in FILE_SUFFIXES:
            raise ConfigurationError(
                f"network={network!r} names a file: pass the module, with its weights loaded"
            )
        provider, slash, name = network.partition("/")
        if slash and (provider not in LIBRARIES or not name):
            raise ConfigurationError(
                f"network={network!r} must be an option of the group model, or <library>/<name> "
                f"with one of: {', '.join(LIBRARIES)}"
            )
        yield f"model={literal(provider)}"
        known = {**({"name": name} if slash else {}), **known}
    else:
        raise ConfigurationError(f"{_described(network)}; expected a torch.nn.Module or a name")
    yield from as_overrides(known, "model.")


def option_settings(**options: Any) -> Iterator[tuple[str, str]]:
    """Yield groups and the names of their options, where they are given.

    Raises:
        ConfigurationError: one is no text.
    """
    for group, option in options.items():
        if option is None:
            continue
        if not isinstance(option, str) or not option:
            raise ConfigurationError(
                f"{group}={option!r} must be the name of a {group}; there are: "
                f"{', '.join(_options_of(group))}"
            )
        yield group, option


def bits_settings(bits: Bits | None) -> Iterator[str]:
    """Yield the bits of weights and of activations, of all layers and of some.

    ``*`` are the layers that no other pattern matches, wherever it stands.

    Raises:
        ConfigurationError: they are of no form that is known.
    """
    if bits is None:
        return
    by_layer: Mapping[Any, Any] = bits if isinstance(bits, Mapping) else {ALL_LAYERS: bits}
    entries = []
    for layers, wanted in by_layer.items():
        if not isinstance(layers, str) or not layers:
            raise ConfigurationError(
                f"bits={bits!r}: {layers!r} is no pattern of the names of layers"
            )
        numbers = _weights_and_activations(bits, wanted)
        if layers == ALL_LAYERS:
            yield from as_overrides({"bits": None, **numbers}, "quantizer.")
        elif _is_integer(wanted):
            # Of both, where what these layers take in is quantized at all.
            entries.append({"layers": layers, "bits": int(wanted)})
        else:
            entries.append({"layers": layers, **numbers})
    if entries:
        yield f"quantizer.overrides={literal(entries)}"


def _weights_and_activations(bits: Bits, wanted: Any) -> dict[str, int]:
    if isinstance(wanted, str) and (word := BITS_IN_A_WORD.fullmatch(wanted)):
        wanted = tuple(map(int, word.groups()))
    pair: Sequence[Any] = wanted if isinstance(wanted, tuple | list) else (wanted, wanted)
    if len(pair) == 2 and wanted is not None:
        pair = [FLOAT_BITS if number is None else number for number in pair]
    if len(pair) != 2 or not all(_is_integer(number) for number in pair):
        raise ConfigurationError(
            f"bits={bits!r} must be one integer, or two, of weights and of activations, also as "
            f"'w4a8', where {FLOAT_BITS} or None is floating point; or such by patterns of the "
            "names of layers, {'stem*': 8, '*': 4}"
        )
    return {"weight_bits": int(pair[0]), "activation_bits": int(pair[1])}


def data_settings(data: Any, overrides: Sequence[str]) -> Iterator[str]:
    """Yield the place of the evaluation data: an option's, in files, handed over, or nowhere.

    Raises:
        DataError: a name is no option of the group ``data``, and there are no such files.
    """
    if data is None:
        if not any(concerns(text, "data") and text.startswith("data=") for text in overrides):
            yield "data=none"
    elif is_handed_over(data):
        yield from ("data=none", "data.source=given", "data.holdout=0")
    elif data in _options_of("data"):
        yield f"data={literal(data)}"
    elif not os.fspath(data):  # which would be the working directory
        raise DataError(f"data={data!r} is no path")
    else:
        yield from _data_in_files(Path(data).expanduser())


def device_settings(device: Any) -> Iterator[str]:
    """Yield the device as Lightning calls it; none where it is left to be found.

    Raises:
        ConfigurationError: it is none, or one of several of a kind.
    """
    if device is None:
        return
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(f"device={device!r} is no device") from error
    if wanted.index not in (None, 0):
        raise ConfigurationError(
            f"device={device!r}: a run takes the first device that it sees; "
            f"CUDA_VISIBLE_DEVICES={wanted.index} lets it see that one"
        )
    yield f"trainer.accelerator={ACCELERATORS.get(wanted.type, wanted.type)}"
    yield "trainer.devices=1"


def is_handed_over(data: Any) -> bool:
    """Return whether the evaluation data are objects, and not named."""
    return data is not None and not isinstance(data, str | os.PathLike)


def surroundings_settings(
    folder: str | Path | None, seed: int | None, progress: bool
) -> Iterator[str]:
    """Yield the settings of what is around the method.

    Raises:
        ConfigurationError: ``seed`` is no integer, or ``folder`` is no path or a file.
    """
    yield f"callbacks.progress={literal(bool(progress))}"
    if seed is not None:
        yield f"seed={_integer('seed', seed)}"
    if folder is None:
        # What reports and exports leave in the folder would be gone with it.
        yield from ("report=false", "export=none")
    elif not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise ConfigurationError(f"folder={folder!r} must be the path of a folder")
    elif Path(folder).expanduser().exists() and not Path(folder).expanduser().is_dir():
        raise ConfigurationError(f"folder={folder} is a file; expected a folder, or a new name")
    elif (Path(folder).expanduser() / CONFIG_FILE).exists():
        raise ConfigurationError(f"folder={folder} already holds a run: choose another folder")


def checked_input_shape(network: nn.Module | str, shape: InputShape | None) -> InputShape | None:
    """Return ``shape`` in Python's own integers.

    Raises:
        ConfigurationError: it is neither a side nor (channels, height, width), or the network
            has a name, and so an input of its own.
    """
    if shape is None:
        return None
    if isinstance(network, str):
        raise ConfigurationError(
            f"input_shape={shape}: the network {network!r} has its own; "
            "overrides=['model.input_size=...'] changes it where that is possible"
        )
    given: Any = shape
    if _is_integer(given) and given > 0:
        return int(given)
    sizes: Sequence[Any] = given if isinstance(given, tuple | list) else ()
    if len(sizes) not in (2, 3) or not all(_is_integer(size) and size > 0 for size in sizes):
        raise ConfigurationError(
            f"input_shape={shape!r} must be (channels, height, width), one side in pixels, or "
            "(channels, length) of signals"
        )
    whole: Any = tuple(int(size) for size in sizes)
    return whole  # type: ignore[no-any-return]


def _data_in_files(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from ("data=imagenet", f"data.path={literal(path)}")
    elif path.is_file() and path.suffix == ARCHIVE_SUFFIX:
        yield from ("data=npz", f"data.path={literal(path)}")
    else:
        raise DataError(
            f"data={str(path)!r} is neither an option of the group data ("
            f"{', '.join(_options_of('data'))}), nor a folder with one folder per class, nor an "
            f"{ARCHIVE_SUFFIX} file"
        )


def _options_of(group: str) -> list[str]:
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def _is_integer(value: Any) -> bool:
    """Return whether it is an integer, also numpy's; True and False mean something else."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _integer(name: str, value: Any) -> int:
    if not _is_integer(value):
        raise ConfigurationError(f"{name}={value!r} must be an integer")
    return int(value)


def _numbers(name: str, values: Any) -> list[float]:
    """Return the numbers of a sequence, an array or a tensor."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, list | tuple) or not all(
        isinstance(value, Real) and not isinstance(value, bool) for value in listed
    ):
        # An array shows itself on several lines.
        shown = " ".join(repr(values).split())
        raise ConfigurationError(
            f"{name}={shown} must be one number per channel, for example {name}=[0.5]"
        )
    return [float(value) for value in listed]


def _names(values: Any) -> list[str]:
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        # Of a mapping nobody could say whether keys or values are meant.
        raise ConfigurationError(f"class_names={values!r} must be a list of names, one per class")
    return [str(value) for value in values]


def _described(network: Any) -> str:
    if isinstance(network, type):
        return f"network is the class {network.__name__} and no object of it"
    if isinstance(network, Mapping):
        return "network is a mapping, perhaps the weights alone"
    return f"network is a {type(network).__name__}"
