"""Text from outside, as it can be printed: a name may hold brackets, and bytes that are no text."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def printable(text: str) -> str:
    """Return text that every file and screen takes: what is no text in a name as an escape.

    Python reads bytes of a path that are no UTF-8 as signs that it refuses to write.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def as_it_is(text: str, style: str = "") -> Text:
    """Return text for a table of Rich, which would take brackets and colons for markup.

    Args:
        text: What is to be shown.
        style: Of the whole text.
    """
    return Text(printable(text), style=style)


def plain_console(width: int | None = None) -> Console:
    """Return a console on standard output that reads no markup in what it prints.

    Args:
        width: In characters; none: that of the terminal.
    """
    return Console(markup=False, emoji=False, width=width)
