"""The errors that a user can cause and mend: each is one clear line.

The command line prints the message alone and exits with status 2; everything
else that is raised is a defect of this package and keeps its stack trace.
"""

from __future__ import annotations

DEFECT_STATUS, USER_ERROR_STATUS, INTERRUPTED_STATUS = 1, 2, 130
BROKEN_PIPE_STATUS, TERMINATED_STATUS = 141, 143
"""Exit statuses of the command."""


class UserError(Exception):
    """Something handed in is wrong; the message says what, where, and what is allowed."""


class ConfigurationError(UserError):
    """A configuration value is out of range, or two values contradict each other."""


class ModelError(UserError):
    """A network or its weights cannot be used."""


class ExportError(UserError):
    """An exported file does not compute what the student computes, or could not be written."""


class DataError(UserError):
    """Evaluation data or synthetic images are missing or malformed."""


class StorageError(UserError):
    """A file of the run could not be written, for example because the disk is full."""


class MemoryLimitError(UserError):
    """A step does not fit into the device's memory; the message says what to lower."""


class LostProcessError(UserError):
    """Another process of the run ended or did not answer in time."""


class DivergenceError(UserError):
    """A loss became NaN or infinite during training."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or of what it is where it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0]
