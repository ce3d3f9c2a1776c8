"""The page of the architecture says what the code does: its arrows, its walks, its numbers."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.command_line import TINY, call
from tests.docs.snippets import ROOT, commands, product_arguments
from tests.test_arrows import ALLOWED

PACKAGE = ROOT / "src" / "hast_lightning"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
VALUE, BATCH = (
    "One value, from the command line to the arithmetic",
    "One batch, through a student step",
)
STEP = re.compile(r"^\d+\. `((?:\w+\.)+\w+)`", re.MULTILINE)
FIRST_OF_A_STEP = "stages.distill.Distill.step"
END_OF_THE_WALK = "transforms.promotion.promote"


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    found = PAGE.partition(f"\n## {title}\n")[2]
    return found.partition("\n## ")[0]


def rooms(page: str) -> dict[str, tuple[str, set[str]]]:
    """What the table says of each room: what is in it, and what it may import."""
    _, _, behind = page.partition("| room | what is in it | imports |\n| --- | --- | --- |\n")
    cells = [line.strip("|").split("|") for line in behind.partition("\n\n")[0].splitlines()]
    code = re.compile(r"`([\w.]+)`")
    return {
        code.findall(room)[0]: (content.strip(), set(code.findall(imports)))
        for room, content, imports in cells
    }


def test_the_arrows_are_those_of_the_test_of_arrows() -> None:
    named = {room: imports for room, (_, imports) in rooms(PAGE).items()}
    assert named == {room or "__init__": imports for room, imports in ALLOWED.items()}


def test_every_room_says_what_is_in_it_and_exists() -> None:
    for room, (content, _) in rooms(PAGE).items():
        assert content, room
        assert (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file(), room


def test_rooms_are_listed_behind_what_they_import_where_that_is_possible() -> None:
    """A reader who reads downwards meets what is used before what uses it."""
    listed = list(rooms(PAGE))
    back = [
        (room, other)
        for room, (_, imports) in rooms(PAGE).items()
        for other in imports
        if "." not in other and other in listed and listed.index(other) > listed.index(room)
    ]
    # Callbacks show loggers what there is; one module of either room is what the other uses.
    assert set(back) <= {("training", "tracking")}


def test_the_numbers_of_files_and_folders_are_those_of_the_package() -> None:
    files = len(list(PACKAGE.glob("*.py")))
    folders = len({path.parent for path in PACKAGE.glob("*/__init__.py")})
    assert f"Now {files} files and {folders} folders lie there" in PAGE


def test_in_the_drawing_each_room_stands_above_what_it_imports() -> None:
    _, _, behind = PAGE.partition("The house now:\n\n```text\n")
    lines = behind.partition("```")[0].splitlines()
    floors = {room: -number for number, line in enumerate(lines) for room in line.split()}
    assert set(floors) == {room or "__init__" for room in ALLOWED}
    below = [
        (room, other)
        for room, imports in ALLOWED.items()
        for other in imports
        if "." not in other and floors[other] >= floors[room or "__init__"]
    ]
    assert below == []


# --- the walks ---------------------------------------------------------------------------------


class Tracer:
    """Records the package's functions as they are called, and ``eps`` where it arrives.

    Attributes:
        called: Dotted names below the package, in order.
        arrived: What the last function of the walk got as ``eps``.
    """

    def __init__(self) -> None:
        self.called: list[str] = []
        self.arrived: list[float] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event != "call" or not module.startswith("hast_lightning."):
            return
        name = f"{module.removeprefix('hast_lightning.')}.{frame.f_code.co_qualname}"
        self.called.append(name)
        if name == END_OF_THE_WALK:
            self.arrived.append(frame.f_locals["eps"])


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    """A run of the command on the page, with a small budget."""
    folder, tracer = tmp_path_factory.mktemp("walk"), Tracer()
    before = sys.getprofile()
    sys.setprofile(tracer)
    try:
        done = call(*TINY, *words_of_the_page(), "hydra.run.dir=run", folder=folder)
    finally:
        sys.setprofile(before)
    assert done.status == 0, done.err
    return tracer


def words_of_the_page() -> list[str]:
    """The arguments of the command that the walk begins with."""
    (code,) = re.findall(r"```sh\n(.*?)```", section(VALUE), re.DOTALL)
    (command,) = commands(code)
    return product_arguments(command.split())[1:]


def missed(steps: list[str], called: list[str]) -> Iterator[str]:
    """The steps that are not called, or not behind the step before them."""
    position = 0
    for step in steps:
        if step not in called[position:]:
            yield step
        else:
            position = called.index(step, position)


def test_a_value_walks_as_the_page_says(traced: Tracer) -> None:
    first, *steps = STEP.findall(section(VALUE))
    assert len(steps) > 10 and steps[-1] == END_OF_THE_WALK
    # The console script begins there; what is called in this process begins behind it.
    assert first == "cli.start.main"
    assert list(missed(steps, traced.called)) == []


def test_the_value_arrives(traced: Tracer) -> None:
    (word,) = words_of_the_page()
    assert set(traced.arrived) == {float(word.partition("=")[2])}


def test_a_batch_walks_as_the_page_says(traced: Tracer) -> None:
    steps = STEP.findall(section(BATCH))
    assert len(steps) > 12 and steps[0] == FIRST_OF_A_STEP
    start = traced.called.index(FIRST_OF_A_STEP)
    end = traced.called.index(FIRST_OF_A_STEP, start + 1)
    assert list(missed(steps, traced.called[start:end])) == []


def test_a_step_that_is_not_called_or_out_of_order_is_noticed() -> None:
    assert list(missed(["a", "b", "c"], ["a", "x", "b", "c"])) == []
    assert list(missed(["a", "c", "b"], ["a", "b", "c"])) == ["b"]
    assert list(missed(["a", "d"], ["a"])) == ["d"]


def test_names_of_code_on_the_page_exist() -> None:
    paths = re.findall(r"`([\w/]+\.py)`", PAGE)
    known = [path for path in paths if (PACKAGE / path).is_file() or (ROOT / path).is_file()]
    known += [path for path in paths if list(PACKAGE.glob(f"*/{path}"))]
    assert len(paths) > 5 and set(paths) == set(known)
    core = "".join(path.read_text() for path in (PACKAGE / "core").glob("*.py"))
    named = re.findall(r"`(\w+)`", section("Six nouns").partition("A source")[0])
    assert named and all(re.search(rf"class {name}\b", core) for name in named)


def test_the_page_is_where_this_test_looks(tmp_path: Path) -> None:
    """Guards against a reader of the page that finds nothing in it."""
    assert rooms(PAGE) and not rooms(PAGE.replace("| room |", "| place |"))
