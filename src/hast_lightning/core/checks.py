"""Refusals in one line: which key, which value, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from hast_lightning.errors import ConfigurationError

MAX_RATE = 1e30
"""Largest learning rate or weight decay: torch raises where its multiples leave float32."""


def require_choice(key: str, value: str, choices: Collection[str]) -> None:
    """Refuse ``value`` unless it is one of ``choices``."""
    if value not in choices:
        raise ConfigurationError(f"{key}={value!r} is not one of: {', '.join(sorted(choices))}")


def require_range(
    key: str, value: float, minimum: float, maximum: float = math.inf, *, open_minimum: bool = False
) -> None:
    """Refuse ``value`` outside ``[minimum, maximum]`` (``(minimum, maximum]`` if open)."""
    # NaN and infinity are refused whatever the range.
    above = value > minimum if open_minimum else value >= minimum
    if not (above and value <= maximum and math.isfinite(value)):
        lower = f"greater than {minimum:g}" if open_minimum else f"at least {minimum:g}"
        upper = f" and at most {maximum:.10g}" if math.isfinite(maximum) else ""
        upper = upper or (" and finite" if value == maximum else "")
        raise ConfigurationError(f"{key}={value} must be {lower}{upper}")


def expand_home(path: str | None) -> str | None:
    """Return ``path`` with a leading ``~`` spelled out, which no shell does behind ``key=``."""
    return None if path is None else str(Path(path).expanduser())
