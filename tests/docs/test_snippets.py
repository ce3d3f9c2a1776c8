"""Every command and every piece of code that a page shows does what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hast_lightning.sources.image_bank import ImageBank
from tests.command_line import undisturbed_torch
from tests.composition import composed
from tests.docs.snippets import ROOT, Block, Reader, blocks, check, commands

PAGES = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if any(True for _ in blocks(path))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_says_can_be_done(page: Path, tmp_path: Path) -> None:
    follow(page, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.slow for b in blocks(p))], ids=lambda path: path.name
)
def test_what_takes_longer_can_be_done_too(page: Path, tmp_path: Path) -> None:
    follow(page, tmp_path, slow=True)


def follow(page: Path, folder: Path, slow: bool) -> None:
    reader = Reader(folder, slow)
    with undisturbed_torch():
        for block in blocks(page):
            reader.follow(block)


def test_readme_and_tutorial_have_blocks_that_are_run() -> None:
    """Guards against a reader of pages that finds nothing in them."""
    for name, least in (("README.md", 2), ("docs/tutorial.md", 8), ("docs/your-network.md", 6)):
        run = [block for block in blocks(ROOT / name) if block.mode == "run"]
        assert len(run) >= least, name


def test_the_budget_that_the_tutorial_and_the_notebook_tell_is_the_demo() -> None:
    config = composed()
    bank, steps = config.sources["bank"], config.stages["distillation"].steps
    assert isinstance(bank, ImageBank)
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert f"{bank.size:,} images in {bank.size // bank.batch_size} batches" in tutorial
    assert f"for {steps:,} steps" in tutorial
    notebook = (ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8")
    budget = f"{bank.size:,} images of {bank.iterations:,} steps and {steps:,} student steps"
    assert f'schedule=\\"demo\\"` has {budget}' in notebook


# --- the reader itself -----------------------------------------------------------------------


def block(code: str, language: str = "sh", slow: bool = False) -> Block:
    return Block("page.md:1", language, "run", slow, "", (), code)


@pytest.mark.parametrize(
    "wrong",
    [
        block("python -m hast_lightning quantizer.weight_bits=9"),
        block("python -m hast_lightning quantizer.weight_bits=9", slow=True),
        block("ls nothing_here"),
        block("make no_such_target"),
        block("git push"),
        block("assert 1 == 2", "python"),
        block("$ python -m hast_lightning seed=-1\nhast-lightning: something else", "console"),
        block("$ python -m hast_lightning command=inspect\nhast-lightning: ...", "console"),
    ],
    ids=lambda block: block.code[:40],
)
def test_what_does_not_work_is_noticed(tmp_path: Path, wrong: Block) -> None:
    with pytest.raises(Exception):  # noqa: B017  # of whatever kind: the page would be wrong
        Reader(tmp_path, slow=False).follow(wrong)


def test_commands_are_joined_and_comments_left_out() -> None:
    code = "# first\nmake run   # now\n\npython -m hast_lightning \\\n    seed=1\n"
    found = [" ".join(command.split()) for command in commands(code)]
    assert found == ["make run # now", "python -m hast_lightning seed=1"]


def test_a_sweep_is_checked_with_the_first_of_its_values() -> None:
    check(["-m", "quantizer.bits=4,99", "order=[synthesis,calibration,distillation]"])
    with pytest.raises(Exception, match="bits"):
        check(["-m", "quantizer.bits=99,4"])


def test_marks_before_blocks_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nmake run\n```\n\n<!-- test: run slow seed=1 (why) -->\n```sh\nmake test\n```\n"
        "```text\nno code\n```\n<!-- test: file a/b.yaml -->\n```yaml\nc: 1\n```\n"
    )
    first, second, third = blocks(page)
    assert (first.mode, first.slow, first.code) == ("run", False, "make run\n")
    assert (second.slow, second.words) == (True, ("seed=1",))
    Reader(tmp_path, slow=False).follow(third)
    assert (tmp_path / "a/b.yaml").read_text() == "c: 1\n"


def test_a_skip_needs_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- test: skip -->\n```sh\nmake run\n```\n")
    with pytest.raises(AssertionError, match="without its reason"):
        list(blocks(page))
