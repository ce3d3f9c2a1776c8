"""Errors of a configuration, and of Hydra that composes it, as one line each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TypeGuard

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from hast_lightning.config.folder import config_folder
from hast_lightning.config.root import COMMANDS, describe_unknown_key, describe_unknown_key_of_entry

# How Hydra says it, on the command line and of a file ("In 'experiment/...': ...").
UNKNOWN_KEY = re.compile(
    r"(In '[^']+': )?(?:Could not override '([^']+)'|ConfigKeyError.* full_key: (\S+))", re.DOTALL
)
# Said of an entry of a list, whose place OmegaConf does not know.
UNKNOWN_KEY_OF_ENTRY = re.compile(r"Key '([^']+)' not in '(\w+)'")
MISSING_PLUGIN = re.compile(
    r"Could not (?:find|load|override) '?hydra/(?:launcher|sweeper)[/=@](\w+)"
)
MISSING_OPTION = re.compile(
    r"(?:In '([^']+)': )?Could not find '([^']+)/([^']*)'\s+Available options in '[^']+':(.*?)"
    r"(?:Config search path|$)",
    re.DOTALL,
)
MANY_OPTIONS = 20
NETWORKS_ELSEWHERE = (
    "; networks of torchvision, timm and pytorchcv are named by model=torchvision model.name={0}, "
    "in Python by 'torchvision/{0}'"
)
NO_SETTING = re.compile(r"Error parsing override '([^=\n]*)'\s+missing EQUAL")
ADDED_TWICE = re.compile(r"Multiple values for ([\w/]+)\.")
EXTRAS = {
    "optuna": "sweeps",
    "joblib": "sweeps",
    "ray": "ray",
    "submitit_local": "sweeps",
    "submitit_slurm": "sweeps",
}


def one_line(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """An error as one line, with the choices where there are some.

    Hydra proposes to add every key that it does not know, and keeps the reason why a value
    does not fit in the error's cause.

    Args:
        error: Of composing a configuration, or any other.
        arguments: What was asked for, since Hydra does not say which of it is the number that
            it takes for a value and not for an option.
    """
    if (plugin := MISSING_PLUGIN.search(str(error))) and (reason := _missing_plugin(plugin[1])):
        return reason
    if missing := MISSING_OPTION.match(str(error)):
        file, group, option, options = missing.groups()
        place = "" if file in (None, "config") or file.startswith("hydra/") else f"In '{file}': "
        return place + _no_option(group, option, options.split())
    if description := _describe_entry(error) or _describe_word(str(error)):
        return description
    if unknown := UNKNOWN_KEY.match(str(error)):
        place, key = unknown[1] or "", unknown[2] or unknown[3]
        if not _is_optional_group(key) and (description := describe_unknown_key(key)):
            return place + description
    if type(error) is ValueError and (description := _describe_unknown_option(arguments)):
        return description
    if _names_a_file(error):
        return f"the folder or file {error.filename} cannot be used: {error.strerror}"
    line = joined_lines(error)
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        reason = joined_lines(error.__cause__)
        return line if reason in line else f"{line}: {reason}"
    return line


def _describe_word(text: str) -> str | None:
    """What to say of a word that is no setting, or that adds what is there; else none."""
    if missing := NO_SETTING.match(text):
        word = missing[1]
        hint = f"; did you mean command={word}?" if word in COMMANDS else ""
        return f"{word!r} is no setting: expected key=value or group=option{hint}"
    if twice := ADDED_TWICE.search(text):
        return f"{twice[1]} has an option already: {twice[1]}=... without the plus takes another"
    return None


def _describe_entry(error: BaseException) -> str | None:
    """What to say of an unknown key in an entry of a list; none of any other error."""
    found = UNKNOWN_KEY_OF_ENTRY.search(f"{error}\n{error.__cause__ or ''}")
    description = found and describe_unknown_key_of_entry(found[2], found[1])
    place = re.match(r"In '[^']+': ", str(error))
    return f"{place[0] if place else ''}{description}" if description else None


def _names_a_file(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused a file; some of Hydra's errors, and lost connections, do not."""
    if isinstance(error, HydraException) or not isinstance(error, OSError):
        return False
    return error.filename is not None


def joined_lines(error: BaseException) -> str:
    """The error's own words in one line, without what Hydra and OmegaConf add for themselves."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hidden = (
        "Set the environment variable",
        "full_key:",
        "object_type=",
        "reference_type=",
        "Config search path",
        "provider=",
    )
    shown = [line for line in lines if not line.startswith(hidden)]
    return " ".join(shown or [type(error).__name__])


def _missing_plugin(name: str) -> str | None:
    """How to install one of Hydra's launchers or sweepers; none of a name that is none."""
    extra = EXTRAS.get(name)
    return extra and f"{name} needs a plugin of Hydra: pip install 'hast-lightning[{extra}]'"


def _is_optional_group(key: str) -> bool:
    """Whether ``key`` is a group that the defaults do not mention, such as ``experiment``."""
    return key.split(".")[0] == "hydra" or (config_folder() / key).is_dir()


def _describe_unknown_option(arguments: Sequence[str]) -> str | None:
    """What to say of the first option among the arguments that its group does not have."""
    for argument in arguments:
        group, _, option = argument.lstrip("+").partition("=")
        options = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
        if not group or group.startswith("hydra/"):
            continue  # Hydra and its plugins have options of their own.
        if options and option not in options:
            return _no_option(group, option, options)
    return None


def _no_option(group: str, option: str, options: Sequence[str]) -> str:
    """What was probably meant; all there are where nothing is like it, or where they are few."""
    close = difflib.get_close_matches(option, options)
    hint = f"; did you mean {', '.join(close)}" if close else ""
    if not close or len(options) <= MANY_OPTIONS:
        hint += f"; it has: {', '.join(options)}"
    else:
        hint += f" ({len(options)} in all: python -m hast_lightning --help)"
    elsewhere = NETWORKS_ELSEWHERE.format(option) if group == "model" and option else ""
    return f"{group}={option}: {option or 'nothing'} is no option of {group}{hint}{elsewhere}"
