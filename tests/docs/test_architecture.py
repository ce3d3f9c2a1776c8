"""The page of the house names every room that there is, and no other."""

from __future__ import annotations

import re

from tests.docs.snippets import ROOT

PACKAGE = ROOT / "src" / "hast_lightning"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOM = re.compile(r"`([\w/]+(?:\.py|/))`")


def rooms() -> set[str]:
    """What lies directly under the package, folders with a slash behind them."""
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    return modules | {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}


def table(page: str) -> list[str]:
    """The first column of the table of rooms; a cell may name several."""
    _, _, behind = page.partition("\n| room | what is in it |\n| --- | --- |\n")
    rows = behind.partition("\n\n")[0].splitlines()
    return [room for row in rows for room in ROOM.findall(row.split("|")[1])]


def test_every_room_is_in_the_table_once() -> None:
    named = table(PAGE)
    # A room in a room may have a row of its own.
    inner = [room for room in named if room.count("/") > 1]
    assert sorted(set(named) - set(inner)) == sorted(rooms())
    assert len(set(named)) == len(named)
    assert all((PACKAGE / room).exists() for room in inner)


def test_a_room_that_the_table_lacks_is_noticed() -> None:
    without = PAGE.replace("| `archives.py` |", "| archives |")
    assert "archives.py" in table(PAGE)
    assert "archives.py" not in table(without)
