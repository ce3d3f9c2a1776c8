"""Every package that the project asks for is explained on the page of dependencies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")


def package(requirement: str) -> str:
    """The name before the extras, the version and the marker."""
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]


def named(page: str) -> set[str]:
    """The words in the first column of the page's tables, with and without the extra's quotes."""
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    return {word for cell in cells for word in re.split(r"[\s,;:]+", cell)}


WANTED = sorted(
    {package(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts}
)


@pytest.mark.parametrize("name", WANTED)
def test_every_package_is_named(name: str) -> None:
    assert name in named(PAGE)


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_extra_is_named(extra: str) -> None:
    assert f"`{extra}`" in PAGE


def test_no_package_is_named_that_the_project_does_not_ask_for() -> None:
    words = named(PAGE.partition("## Kept by hand")[0]) - {"package", "---", ""}
    assert {word for word in words if "`" not in word} == set(WANTED)


def tables(page: str) -> list[list[str]]:
    """The cells of every line of a table."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def modules(page: str) -> list[str]:
    """The modules of the package that are named by their path."""
    return re.findall(r"`([\w/]+\.py)`", page)


def test_no_cell_is_blank() -> None:
    assert all(all(cells) for cells in tables(PAGE))
    assert not all(all(cells) for cells in tables("| a | | b |"))


@pytest.mark.parametrize("path", modules(PAGE))
def test_every_module_that_is_named_exists(path: str) -> None:
    assert (ROOT / "src" / "hast_lightning" / path).is_file()


def test_code_of_our_own_that_a_library_might_do_is_explained() -> None:
    assert len(modules(PAGE)) >= 10


EXTRAS_NAMED = re.compile(r"hast-lightning\[([\w,]+)\]")


def mentions() -> dict[str, set[str]]:
    """The files that name extras to install, and the extras."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]
    files += [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "src").rglob("*.py")]
    found = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}
    return {
        name: {extra for group in EXTRAS_NAMED.findall(text) for extra in group.split(",")}
        for name, text in found.items()
        if EXTRAS_NAMED.search(text)
    }


@pytest.mark.parametrize(("file", "extras"), mentions().items())
def test_every_extra_that_a_reader_is_told_to_install_exists(file: str, extras: set[str]) -> None:
    assert extras <= set(EXTRAS)


def test_the_first_page_names_every_extra_once() -> None:
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    _, _, table = page.partition("| extra | what for |\n| --- | --- |\n")
    cells = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines()]
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(cells))) == sorted(EXTRAS)


BARE_INSTALL = re.compile(r"pip install (?:-\S+ )*'?hast-lightning(?!\[)")
"""What finds no package, since there is none of that name on an index."""


def test_nobody_is_told_to_install_from_an_index() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        assert not BARE_INSTALL.search(page.read_text(encoding="utf-8")), page
    assert BARE_INSTALL.search("pip install hast-lightning")
    assert not BARE_INSTALL.search("pip install 'hast-lightning[onnx]'")


def test_a_package_that_is_missing_is_noticed() -> None:
    assert "timm" not in named(PAGE.replace("timm", ""))
    assert package("submitit[x]>=1.2; python_version > '3'") == "submitit"
