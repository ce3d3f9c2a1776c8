"""Equations as MathML, written when the site is built: browsers draw it without any script.

Sphinx's own renderers load a script from another host or need a TeX installation. The converter
prints commands that it does not know as they stand: each is a warning, and so ends `make docs`.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

LEFT_OVER = re.compile(r"\\\w*")
"""A command in the output; the sign itself, of ``\\backslash``, comes as a number there."""
_log = logging.getLogger(__name__)


def converted(node: nodes.math | nodes.math_block, display: str) -> str:
    """The formula of ``node`` as MathML; a warning at its place where it is not all converted."""
    formula = node.astext()
    try:
        text: str = convert(formula, display=display)
    except Exception as error:  # of a kind of its own for each thing that LaTeX may lack
        reason = type(error).__name__
        _log.warning("the formula %r is no LaTeX: %s", formula, reason, location=node)
        return ""
    if unknown := LEFT_OVER.findall(text):
        words = ", ".join(sorted(set(unknown)))
        _log.warning("the formula %r cannot be converted: %s", formula, words, location=node)
    return text


def visit_inline(writer: Any, node: nodes.math) -> None:
    """Write a formula inside a line."""
    writer.body.append(converted(node, "inline"))
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    number = f'<span class="eqno">({node["number"]})</span>' if node["number"] else ""
    formula = converted(node, "block")
    writer.body.append(f'<div class="equation">{number}{formula}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer as ``html_math_renderer = "mathml"``."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
