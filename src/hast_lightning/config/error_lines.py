"""Errors of a configuration, and of Hydra and its launchers, as one line each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from re import Match, Pattern
from typing import NamedTuple, TypeGuard

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from hast_lightning.config.folder import config_folder
from hast_lightning.config.quoting import rest_of_value, several, unreadable
from hast_lightning.config.renamed import renamed
from hast_lightning.config.root import COMMANDS, Config
from hast_lightning.config.unknown import describe, did_you_mean
from hast_lightning.core.part import parts
from hast_lightning.errors import DEFECT_STATUS, TERMINATED_STATUS, USER_ERROR_STATUS

MANY_OPTIONS = 24
NETWORKS_ELSEWHERE = (
    "; networks of torchvision, timm and pytorchcv are named by model=torchvision model.name={0}, "
    "in Python by 'torchvision/{0}'"
)
PARTS_ELSEWHERE = "; modules=[package.module] makes your own known"
EXTRAS = {
    "optuna": "sweeps",
    "joblib": "sweeps",
    "ray": "ray",
    "submitit_local": "sweeps",
    "submitit_slurm": "sweeps",
}
"""Launchers and sweepers by the extra that brings them."""

Says = Callable[[Match[str], BaseException], str | None]


class Recognized(NamedTuple):
    """What is said of an error of another package.

    Attributes:
        line: In place of its message.
        status: Exit status of the command.
        ends_alone: Other jobs of the sweep go on, so that nobody can tell yet which of them fail.
    """

    line: str
    status: int = USER_ERROR_STATUS
    ends_alone: bool = False


class Foreign(NamedTuple):
    """An error of another package, and what is said in its place.

    Attributes:
        kind: Name of its class, which may not be installed; empty: any.
        text: What its message begins with.
        says: The line, or a function that returns it, or none where it is another error after all.
        status: As of :class:`Recognized`.
        ends_alone: As of :class:`Recognized`.
    """

    kind: str
    text: Pattern[str]
    says: Says | str
    status: int = USER_ERROR_STATUS
    ends_alone: bool = False

    def recognize(self, error: BaseException) -> Recognized | None:
        """Return what is said of an error; none of another one."""
        found = self.text.match(str(error))
        if found is None or self.kind not in ("", type(error).__name__):
            return None
        line = self.says if isinstance(self.says, str) else self.says(found, error)
        return None if line is None else Recognized(line, self.status, self.ends_alone)


def _by_text(pattern: str, says: Says | str) -> Foreign:
    return Foreign("", re.compile(pattern, re.DOTALL), says)


def _missing_plugin(found: Match[str], _: BaseException) -> str | None:
    extra = EXTRAS.get(found[1])
    return extra and f"{found[1]} needs a plugin of Hydra: pip install 'hast-lightning[{extra}]'"


def _missing_option(found: Match[str], _: BaseException) -> str:
    file, group, option, options = found.groups()
    place = "" if file in (None, "config") or file.startswith("hydra/") else f"In '{file}': "
    return place + no_such_option(group, option, options.split())


def _unreadable_word(_: Match[str], error: BaseException) -> str:
    word: str = getattr(error, "override", "")
    if "=" in word:
        return unreadable(word)
    hint = f"; did you mean command={word}?" if word in COMMANDS else ""
    return f"{word!r} is no setting: expected key=value or group=option{hint}"


def _unknown_key(found: Match[str], error: BaseException) -> str | None:
    """Say which keys there are; OmegaConf's own error says of what."""
    reason = error.__cause__ or error.__context__ or error
    if not isinstance(reason, OmegaConfBaseException):
        return None
    groups = found.groupdict("")
    line = describe(reason, groups.get("word", ""), Config)
    return line and f"{groups.get('file', '')}{line}"


ANY = re.compile("")
FOREIGN = (
    _by_text(
        r"(?:In '[^']+': )?Could not (?:find|load|override) "
        r"'?hydra/(?:launcher|sweeper)[/=@](\w+)",
        _missing_plugin,
    ),
    _by_text(
        r"(?:In '([^']+)': )?Could not find '([^']+)/([^']*)'\s+Available options in '[^']+':"
        r"(.*?)(?:Config search path|$)",
        _missing_option,
    ),
    Foreign("OverrideParseException", ANY, _unreadable_word),
    _by_text(r"Ambiguous value for argument '(.+?)'\n", lambda found, _: several(found[1])),
    _by_text(
        r".*Multiple values for ([\w/]+)\.",
        lambda found, _: (
            f"{found[1]} has an option already: {found[1]}=... without the plus takes another"
        ),
    ),
    _by_text(
        r"Could not override '(\w+@[\w.]+)'",
        lambda found, _: f"{found[1]}: there is nothing to be replaced; +{found[1]}=... adds it",
    ),
    _by_text(r"Could not override '[^']+'.*use [+](?P<word>.+)", _unknown_key),
    _by_text(
        r"Error merging override ~([\w.]+)",
        lambda found, _: (
            f"~{found[1]}: a setting cannot be taken away, it can only be changed; terms and "
            "transforms are switched off one by one by <name>.enabled=false"
        ),
    ),
    _by_text(r"Error merging override [+]*(?P<word>.+)", _unknown_key),
    _by_text(r"(?P<file>In '[^']+': )\w+ raised while composing config", _unknown_key),
    # Of a run folder whose name has something in it that is not set.
    _by_text(r".*Missing mandatory value: ([\w.]+)", lambda found, _: f"{found[1]} is not set"),
    # OmegaConf, on the way to the value.
    Foreign(
        "AssertionError",
        re.compile("Unexpected type for root"),
        "a key was set below one that is null: choose the group or the part first",
    ),
    # joblib.
    Foreign(
        "TerminatedWorkerError",
        ANY,
        "a process of the sweep was killed, perhaps for want of memory, and joblib ended the "
        "others with it: jobs that are not listed may not have begun; "
        "hydra/launcher=submitit_local gives every job processes of its own",
        DEFECT_STATUS,
    ),
    # submitit.
    Foreign(
        "UncompletedJobError",
        ANY,
        "a job of the sweep ended without a word: killed, or out of memory; the others go on by "
        "themselves, and job_failure.json lies in the folder of each that has not come to its end",
        DEFECT_STATUS,
        ends_alone=True,
    ),
    _by_text(
        'Could not detect "srun"',
        lambda _, error: f"hydra/launcher=submitit_slurm: {joined_lines(error)}",
    ),
    # Lightning's end of a process that was asked to end, which has no exit status.
    Foreign("SIGTERMException", ANY, "terminated", TERMINATED_STATUS),
)
"""Errors that are known by their class or by what their message says."""


def foreign(error: BaseException) -> Recognized | None:
    """Return what is said of an error of another package; none of any other error."""
    return next((found for row in FOREIGN if (found := row.recognize(error))), None)


def one_line(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """Return an error as one line, with the choices where there are some.

    Hydra proposes to add every key that it does not know, and keeps the reason why a value
    does not fit in the error's cause.

    Args:
        error: Of composing a configuration, or any other.
        arguments: What was asked for, since Hydra does not say which of it is the number that
            it takes for a value and not for an option.
    """
    if found := foreign(error):
        return found.line + rest_of_value(getattr(error, "override", "="), arguments)
    if type(error) is ValueError and (description := _describe_unknown_option(arguments)):
        return description
    if _names_a_file(error):
        return f"the folder or file {error.filename} cannot be used: {error.strerror}"
    line = joined_lines(error)
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        reason = joined_lines(error.__cause__)
        return line if reason in line else f"{line}: {reason}"
    return line


def _names_a_file(error: BaseException) -> TypeGuard[OSError]:
    """Return whether the system refused a file; Hydra's errors, and lost connections, do not."""
    if isinstance(error, HydraException) or not isinstance(error, OSError):
        return False
    return error.filename is not None


def joined_lines(error: BaseException) -> str:
    """Return the error's own words in one line, without what Hydra and OmegaConf add."""
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


def _describe_unknown_option(arguments: Sequence[str]) -> str | None:
    """Return what to say of the first option that its group does not have; none if all have it."""
    for argument in arguments:
        group, _, option = argument.lstrip("+").partition("=")
        options = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
        if not group or group.startswith("hydra/"):
            continue  # Hydra and its plugins have options of their own.
        if options and option not in options:
            return no_such_option(group, option, options)
    return None


def no_such_option(group: str, option: str, options: Sequence[str]) -> str:
    """Return what was probably meant; all there are where nothing is like it, or they are few."""
    if line := renamed(f"{group}={option}"):
        return line
    hint = did_you_mean(option, options)
    if not hint or len(options) <= MANY_OPTIONS:
        hint += f"; it has: {', '.join(options)}"
    else:
        hint += f" ({len(options)} in all: python -m hast_lightning --help groups)"
    elsewhere = NETWORKS_ELSEWHERE.format(option) if group == "model" and option else ""
    elsewhere = PARTS_ELSEWHERE if group in parts() else elsewhere
    return f"{group}={option}: {option or 'nothing'} is no option of {group}{hint}{elsewhere}"
