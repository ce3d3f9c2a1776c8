"""Sections that are written when the site is built, in place of a comment in the page.

``<!-- generated: configuration -->`` becomes the reference of every group and key,
``<!-- generated: methods -->`` the list of methods, and ``<!-- generated: results -->`` includes
the README of every folder of ``experiments/``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

from configuration_reference import reference
from methods_page import methods

ROOT = Path(__file__).resolve().parents[2]


def results() -> str:
    """An include of each experiment's README, one heading level down."""
    return "\n".join(
        f"```{{include}} /../{path.relative_to(ROOT)}\n:heading-offset: 1\n```\n"
        for path in sorted(ROOT.glob("experiments/*/README.md"))
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "<!-- generated: configuration -->": reference,
    "<!-- generated: methods -->": methods,
    "<!-- generated: results -->": results,
}


def insert_sections(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the comments in the text of a page, which Sphinx hands over in a list of one."""
    for comment, section in SECTIONS.items():
        if comment in source[0]:
            source[0] = source[0].replace(comment, section())


def setup(app: Sphinx) -> dict[str, bool]:
    """Have every page's text pass through :func:`insert_sections`."""
    app.connect("source-read", insert_sections)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
