"""``command=predict`` without Hydra, whose configuration it does not need."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from hast_lightning.errors import BROKEN_PIPE_STATUS, USER_ERROR_STATUS, UserError

ALLOWED = frozenset({"command", "artifact", "images", "predictions"})
PLAIN = re.compile(r"[A-Za-z_./][\w./-]*", re.ASCII)
"""Values that are to Hydra the text that they are, or else no number."""
WORDS = frozenset({"null", "true", "false", "nan", "inf"})
"""Plain values that are no text to Hydra."""
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG})
"""What the system says of a path that may not be used, or that is too long."""


def plain_prediction(words: Sequence[str]) -> dict[str, str] | None:
    """Return the settings of a prediction; none of any line that only Hydra can read.

    Args:
        words: Of the command line.
    """
    pairs = [word.partition("=") for word in words]
    named = {key: value for key, _, value in pairs}
    if named.get("command") != "predict" or "HYDRA_FULL_ERROR" in os.environ:
        return None
    whole = {"artifact", "images"} <= named.keys() <= ALLOWED and len(named) == len(words)
    plain = all(PLAIN.fullmatch(v) and v.lower() not in WORDS for v in named.values())
    return named if whole and plain else None


def predict_plainly(named: Mapping[str, str]) -> None:
    """Write the table, or one line that says why there is none.

    Args:
        named: What :func:`plain_prediction` has found.
    """
    from hast_lightning.runs.prediction import predict

    target = Path(named["predictions"]) if "predictions" in named else None
    try:
        predict(Path(named["artifact"]), Path(named["images"]), target)
        sys.stdout.flush()
    except UserError as error:
        _refuse(" ".join(str(error).split()))
    except BrokenPipeError:
        # Behind "| head". Python would flush once more at the exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE_STATUS)
    except OSError as error:
        if error.errno not in FORBIDDEN:
            raise
        _refuse(f"the folder or file {error.filename} cannot be used: {error.strerror}")


def _refuse(line: str) -> NoReturn:
    print(f"hast-lightning: {line}", file=sys.stderr)
    sys.exit(USER_ERROR_STATUS)
