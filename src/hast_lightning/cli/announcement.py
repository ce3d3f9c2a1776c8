"""What a command line begins, read from its words and the YAML files alone.

Hydra, which reads them rightly, takes a second, and its schemas import torch. So this is a line for
the eye: what it cannot tell it leaves out, and nothing else depends on it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with OmegaConf

from hast_lightning.core.bits import FLOAT_BITS, NAME_WITH_BITS, Widths

PACKAGE = Path(__file__).resolve().parents[1]
ANSWERS = frozenset({"compare", "dashboard", "methods", "predict"})
"""Commands without network and bits, which answer soon, and the same whatever a sweep changes."""
DEFAULTS = {"model": "digits", "quantizer": "lsq", "method": "hast", "trainer": "default"}
BITS = re.compile(r"W(\d+)A(\d+)")
BITS_KEYS = frozenset({"quantizer.bits", "quantizer.weight_bits", "quantizer.activation_bits"})
SWEPT = re.compile(r"^[^\[{]*,|^(choice|range|interval|glob|tag|shuffle|sort)\(")
"""Values of which each job of a sweep has another one."""
NULL = "null"
SWEEP_FLAGS = ("-m", "--multirun")


def announcement(words: Sequence[str]) -> str | None:
    """Return network, bits, device and folder; none of a line that only asks for something.

    Args:
        words: Of the command line.
    """
    flags = [word for word in words if word.startswith("-") and word not in SWEEP_FLAGS]
    named = dict(_setting(word) for word in words if "=" in word and not word.startswith("-"))
    command = named.get("command", "run")
    if flags or "COMP_LINE" in os.environ or command in ANSWERS:
        return None
    if folder := named.get("resume"):
        return _written([f"going on with {folder} on {_device(named, {})}"])
    recipe = _recipe(named.get("experiment", ""))
    settings = _settings(named, recipe)
    network = _network(named, recipe)
    bits = "" if BITS_KEYS & _varied(named) else _bits(named, settings)
    words_of_bits = _in_words(bits, named, settings)
    parts = [f"{network} to {words_of_bits}" if bits else network, f"on {_device(named, recipe)}"]
    if command in ("inspect", "estimate"):
        return _written([command, *parts])
    swept = any(word in SWEEP_FLAGS for word in words) or named.get("sweep", "none") != "none"
    return _written([*parts, f"into {_folder(named, swept)}"])


def _written(parts: Sequence[str]) -> str:
    """Return the line, with an escape for what is no text in a name."""
    return ", ".join(parts).encode("utf-8", "backslashreplace").decode("utf-8")


def _setting(word: str) -> tuple[str, str]:
    key, _, value = word.lstrip("+").partition("=")
    return key, value.strip("'\"")


def _yaml(path: str) -> Mapping[str, Any]:
    """Return a file of ``conf/``; empty where it is not there or is no mapping."""
    checkout = PACKAGE.parents[1] / "conf"
    root = checkout if (PACKAGE.parents[1] / "pyproject.toml").is_file() else PACKAGE / "conf"
    try:
        content = yaml.safe_load((root / f"{path}.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _recipe(name: str) -> dict[str, Any]:
    """Return what a recipe says, its bits from its name among it."""
    content = dict(_yaml(f"experiment/{name}")) if name else {}
    found = NAME_WITH_BITS.fullmatch(name)
    if found and not content:
        content = dict(_yaml(f"experiment/{found['head']}{found['tail'] or ''}"))
        content["recipe"] = name
        content["quantizer"] = {
            "weight_bits": found["weights"],
            "activation_bits": found["activations"],
        }
    return content


def _group(named: Mapping[str, str], recipe: Mapping[str, Any], group: str) -> str:
    """Return which option of a group is taken."""
    chosen = named.get(group)
    for entry in recipe.get("defaults", ()):
        if chosen is None and isinstance(entry, dict):
            chosen = entry.get(f"override /{group}")
    return chosen or DEFAULTS[group]


def _network(named: Mapping[str, str], recipe: Mapping[str, Any]) -> str:
    option = _group(named, recipe, "model")
    inside = recipe.get("model") or {}
    name = named.get("model.name") or named.get("model.factory") or inside.get("name")
    name = str(name or _yaml(f"model/{option}").get("name", option))
    return option if "$" in name else name


def _bits(named: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Return ``W4A4``, or bits as they were typed; empty where only Hydra can tell."""
    bits = named.get("quantizer.bits", NULL)
    if bits != NULL:
        return f"W{bits}A{bits}" if bits.isdecimal() else bits
    both = [
        named.get(f"quantizer.{key}", settings.get(key, ""))
        for key in ("weight_bits", "activation_bits")
    ]
    weights, activations = (FLOAT_BITS if bits in (None, NULL) else bits for bits in both)
    return "" if "" in both else f"W{weights}A{activations}"


def _in_words(bits: str, named: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Return the bits as a sentence has them: what is in floating point, and whether it is all."""
    found = BITS.fullmatch(bits)
    if found is None:
        return bits
    widths = Widths(*map(int, found.groups()))
    ends = named.get("quantizer.first_and_last_8bit", settings.get("first_and_last_8bit"))
    single = named.get("quantizer.overrides", settings.get("overrides")) or "[]"
    mixed = single != "[]" or (str(ends).lower() == "true" and widths.unlike_8)
    return f"{widths}, mixed" if mixed else str(widths)


def _settings(named: Mapping[str, str], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the quantizer that the files name."""
    method = _yaml(f"method/{_group(named, recipe, 'method')}")
    chosen = _quantizer(_group(named, recipe, "quantizer"))
    return {**chosen, **(method.get("quantizer") or {}), **(recipe.get("quantizer") or {})}


def _quantizer(option: str) -> dict[str, Any]:
    content = dict(_yaml(f"quantizer/{option}"))
    for entry in content.get("defaults", ()):
        if isinstance(entry, str) and entry not in ("_self_", "schema", option):
            content = {**_quantizer(entry), **content}
    return content


def _device(named: Mapping[str, str], recipe: Mapping[str, Any]) -> str:
    """Return the device, as torch will find it where it is chosen automatically."""
    options = {
        **_yaml(f"trainer/{_group(named, recipe, 'trainer')}"),
        **(recipe.get("trainer") or {}),
    }
    device = named.get("trainer.accelerator", str(options.get("accelerator", "auto")))
    count = named.get("trainer.devices", str(options.get("devices", 1)))
    device = _found_device() if device == "auto" else device
    return device if count == "1" else f"{count} x {device}"


def _found_device() -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if Path("/dev/nvidiactl").exists() and not hidden and _torch_has_cuda():
        return "gpu"
    return "mps" if sys.platform == "darwin" and os.uname().machine == "arm64" else "cpu"


def _torch_has_cuda() -> bool:
    """Read it from torch's file, which is found without importing torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^cuda.*= *['\"]", text, re.MULTILINE) is not None


def _varied(named: Mapping[str, str]) -> frozenset[str]:
    """Return the keys that a preset of a sweep varies; none where there is no such sweep."""
    content = _yaml(f"sweep/{named['sweep']}") if "sweep" in named else {}
    sweeper = (content.get("hydra") or {}).get("sweeper") or {}
    return frozenset(sweeper.get("params") or ())


def _folder(named: Mapping[str, str], swept: bool) -> str:
    folder = named.get("hydra.sweep.dir" if swept else "hydra.run.dir")
    if folder is not None:
        return folder or "."
    # To Hydra the folder of a sweep is that of a run without what the jobs differ in.
    same = {key: value for key, value in named.items() if not (swept and SWEPT.search(value))}
    recipe = same.get("task_name") or same.get("experiment")
    settings = _settings(same, {})
    if recipe is None and (bits := _bits(same, settings)):
        recipe = f"{_group(same, {}, 'method')}_{_network(same, {})}_{bits.lower()}"
    return f"{'multirun' if swept else 'outputs'}/{recipe or '<recipe>'}/<now>"
