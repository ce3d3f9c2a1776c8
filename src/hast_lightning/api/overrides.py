"""Changes beside the arguments: as texts, and none of them without an effect."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from hast_lightning.config.literals import as_overrides
from hast_lightning.errors import ConfigurationError

Overrides = str | Sequence[str] | Mapping[str, Any]

# Keys that only the command line follows.
_SWEEPS = ("sweep",)
_COMMANDS = ("command", "resume", "artifact", "images", "predictions", "runs", "compare")
# What the module itself, or the call, says instead.
_OF_NAMED_NETWORKS = ("provider", "factory", "pretrained", "checkpoint", "depth", "input_size")


def as_texts(overrides: Overrides) -> list[str]:
    """Return ``overrides`` in the words of the command line, one per setting.

    Args:
        overrides: One or several such words, or keys and values, nested as in a recipe's file.

    Raises:
        ConfigurationError: they are none of these.
    """
    if isinstance(overrides, str):
        return [overrides]
    if isinstance(overrides, Mapping):
        return list(as_overrides(overrides))
    # A set has no order, and the last of two settings counts.
    if not isinstance(overrides, Iterable) or isinstance(overrides, set | frozenset):
        raise _of_another_kind(overrides)
    texts = list(overrides)
    if not all(isinstance(text, str) for text in texts):
        raise _of_another_kind(overrides)
    return texts


def key_of(text: str) -> str:
    """Return the key that a text sets, without the signs of Hydra's grammar."""
    group, _, place = text.strip().lstrip("+~").partition("=")[0].partition("@")
    # A further teacher is an option of the group "model", but not the network that is quantized.
    return (place if place.startswith("teachers.") else group).strip()


def concerns(text: str, key: str) -> bool:
    """Return whether a text sets ``key`` or, of a group, its option or one of its keys."""
    return key_of(text).replace("/", ".").split(".")[: key.count(".") + 1] == key.split(".")


def chooses_files(text: str) -> bool:
    """Return whether a text says in which files the network is wanted, or in none."""
    return key_of(text) in ("export", "export.formats")


def refuse_ineffective(
    texts: Iterable[str], *, module: bool, data: bool, keeps_folder: bool
) -> None:
    """Refuse settings that would change nothing.

    Args:
        texts: In the words of the command line.
        module: Whether the network is handed over as an object.
        data: Whether the evaluation data are.
        keeps_folder: Whether the files of the run are kept.

    Raises:
        ConfigurationError: there is one; the message says what to do instead.
    """
    for text in texts:
        advice = _elsewhere(text) or _said_by_an_argument(text, module, data)
        if not keeps_folder:
            advice = advice or _lost(text)
        if advice is not None:
            raise ConfigurationError(f"overrides: {text} would change nothing: {advice}")


def _elsewhere(text: str) -> str | None:
    if concerns(text, "hydra"):
        return "Hydra's own settings are for the command line; folder=... says where files go"
    if _concerns_any(text, _SWEEPS):
        return "sweeps are for the command line; call quantize once for every run"
    if _concerns_any(text, _COMMANDS):
        return "it is for other commands than a run, on the command line"
    return None


def _said_by_an_argument(text: str, module: bool, data: bool) -> str | None:
    if key_of(text) == "model":
        return "the network is the first argument"
    if module and _concerns_any(text, [f"model.{name}" for name in _OF_NAMED_NETWORKS]):
        return "the network is handed over as it is"
    if data and concerns(text, "data"):
        return "the images are handed over as data=..."
    return None


def _lost(text: str) -> str | None:
    """Return advice on files that would be gone with their folder in the end."""
    if concerns(text, "report"):
        return "without folder=... a run leaves no files, and so no report; pass it"
    if concerns(text, "export") and text.replace(" ", "") != "export=none":
        return (
            "without folder=... a run leaves no files; pass it, or use save, export_onnx and "
            "export_program of what quantize returns"
        )
    if concerns(text, "logger") and text.partition("=")[2].strip(" []") == "tensorboard":
        return "without folder=... a run leaves no files, so pass it"
    return None


def _concerns_any(text: str, keys: Collection[str]) -> bool:
    return any(concerns(text, key) for key in keys)


def _of_another_kind(overrides: object) -> ConfigurationError:
    return ConfigurationError(
        f"overrides={overrides!r} must be settings such as 'seed=1': one, a list of them, or a "
        "mapping of keys to values"
    )
