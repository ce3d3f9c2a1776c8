"""The badges of README say what is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from hast_lightning import __version__

ROOT = Path(__file__).parents[2]
BADGES = ROOT / "docs" / "_static" / "badges"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def label(name: str) -> str:
    """What a badge says to a reader who cannot see it."""
    found = re.search(r'aria-label="([^"]+)"', (BADGES / f"{name}.svg").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def test_they_are_true() -> None:
    assert label("python") == f"python: {PROJECT['requires-python'].replace('>=', '')} or newer"
    assert label("license") == f"license: {PROJECT['license']}"
    assert label("version") == f"version: {__version__}"
    assert label("data") == "training data: none"


def test_readme_shows_all_of_them() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"docs/_static/badges/(\w+)\.svg", readme))
    assert shown == {path.stem for path in BADGES.glob("*.svg")}
