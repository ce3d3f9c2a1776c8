"""The site builds without a warning, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from docutils import nodes

from generated_sections import SECTIONS, insert_sections, results
from mathml import visit_block, visit_inline
from tests.docs.snippets import ROOT

DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "hast_lightning"
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""What a browser fetches by itself, and the attribute that says where from."""
STYLE_URL = re.compile(r"""url\(\s*["']?((?:https?:)?//[^)"']+)|@import\s+["']([^"']+)""")
CODE_PATH = re.compile(r"`([\w/]+\.py)`")


class Fetched(HTMLParser):
    """Collects the addresses on a page that a browser fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADS.get(tag, ""))
        if address:
            self.addresses.append(address)


def fetched_elsewhere(site: Path) -> Iterator[str]:
    """What pages and style sheets of a built site would get from another host."""
    for page in site.rglob("*.html"):
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        for address in parser.addresses:
            if re.match(r"(https?:)?//", address):
                yield f"{page.name}: {address}"
    for sheet in site.rglob("*.css"):
        for found in STYLE_URL.finditer(sheet.read_text(encoding="utf-8")):
            yield f"{sheet.name}: {found[1] or found[2]}"


def test_what_a_page_fetches_elsewhere_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://fine"><script src="https://cdn/x.js"></script><img src="b.png">'
    )
    (tmp_path / "a.css").write_text("p { background: url(//host/font.woff) } q { x: url(y.png) }")
    assert list(fetched_elsewhere(tmp_path)) == [
        "a.html: https://cdn/x.js",
        "a.css: //host/font.woff",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_without_a_warning_and_fetches_nothing_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site" / "html"
    options = ["--fail-on-warning", "--keep-going", "--quiet", "-d", str(tmp_path / "doctrees")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(site)]
    built = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert list(fetched_elsewhere(site)) == []
    pages = {page.stem for page in DOCS.iterdir() if page.suffix in (".md", ".ipynb")}
    assert pages <= {page.stem for page in site.glob("*.html")}
    keys = (site / "configuration.html").read_text(encoding="utf-8")
    assert 'id="key-quantizer-weight-bits"' in keys
    assert "]{#" not in keys  # an anchor that was not understood
    api = (site / "api.html").read_text(encoding="utf-8")
    assert 'id="hast_lightning.api.quantization.quantize"' in api
    assert "<math" in (site / "method.html").read_text(encoding="utf-8")


# --- the pages -------------------------------------------------------------------------------


def navigation() -> list[str]:
    """The pages that the tables of contents of the first page name."""
    found = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    lines = [line for table in found for line in table.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_every_page_is_in_the_navigation() -> None:
    pages = {page.stem for page in DOCS.iterdir() if page.suffix in (".md", ".ipynb")}
    assert sorted([*navigation(), "index"]) == sorted(pages)


def test_code_that_the_method_names_exists() -> None:
    text = (DOCS / "method.md").read_text(encoding="utf-8")
    paths = CODE_PATH.findall(text)
    assert len(paths) > 15
    assert [path for path in paths if not (PACKAGE / path).is_file()] == []
    for name, path in re.findall(r"`(\w+)` in `([\w/]+\.py)`", text):
        assert re.search(rf"(class|def) {name}\b", (PACKAGE / path).read_text()), name


def test_results_include_each_study_and_pages_without_a_mark_stay_as_they_are() -> None:
    studies = sorted(path.parent.name for path in ROOT.glob("experiments/*/README.md"))
    assert len(studies) >= 2
    assert all(f"{{include}} /../experiments/{study}/README.md" in results() for study in studies)
    source = ["a\n<!-- generated: results -->\nb"]
    insert_sections(None, "results", source)  # type: ignore[arg-type]  # not used
    assert source[0] == f"a\n{results()}\nb"
    plain = ["nothing generated"]
    insert_sections(None, "plain", plain)  # type: ignore[arg-type]
    assert plain == ["nothing generated"]


def test_every_mark_for_a_generated_section_is_in_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    assert all(mark in text for mark in SECTIONS)


# --- equations -------------------------------------------------------------------------------


class Writer:
    """As much of Sphinx's HTML writer as an equation needs."""

    def __init__(self) -> None:
        self.body: list[str] = []


def test_a_formula_becomes_mathml_in_the_line() -> None:
    writer = Writer()
    with pytest.raises(nodes.SkipNode):
        visit_inline(writer, nodes.math("", r"x^2"))
    (text,) = writer.body
    assert text.startswith("<math") and 'display="inline"' in text and "<msup>" in text


def test_a_formula_of_its_own_line_has_its_number() -> None:
    writer = Writer()
    with pytest.raises(nodes.SkipNode):
        visit_block(writer, nodes.math_block("", r"\frac{1}{2}", number=3))
    (text,) = writer.body
    assert 'class="eqno">(3)<' in text and "<mfrac>" in text and 'display="block"' in text


BUILD = """
import sys
from sphinx.cmd.build import main

sys.path.insert(0, {extensions!r})
settings = ["extensions=mathml", "html_math_renderer=mathml", "project=p", "html_theme=basic"]
words = [word for setting in settings for word in ("-D", setting)]
sys.exit(main(["--fail-on-warning", "--keep-going", "-q", "-C", *words, {pages!r}, {site!r}]))
"""


def build_page(folder: Path, formulas: str) -> subprocess.CompletedProcess[str]:
    """A site of one page, with the renderer of formulas and nothing else of ours."""
    (folder / "index.rst").write_text(f"Title\n=====\n\n{formulas}\n", encoding="utf-8")
    code = BUILD.format(
        extensions=str(DOCS / "extensions"), pages=str(folder), site=str(folder / "site")
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        (r":math:`\sgn(x)`", r"cannot be converted: \sgn"),
        (".. math::\n\n   \\aa + \\norm{x}", r"\aa, \norm"),
        (r":math:`x_{`", "is no LaTeX: MissingSuperScriptOrSubscriptError"),
    ],
)
def test_a_formula_that_is_not_all_converted_fails_the_build(
    tmp_path: Path, formula: str, said: str
) -> None:
    built = build_page(tmp_path, formula)
    assert built.returncode != 0
    assert said in built.stderr
    assert re.search(r"index\.rst(:\d+)?: WARNING: the formula", built.stderr)


def test_formulas_that_are_converted_are_no_warning(tmp_path: Path) -> None:
    """A backslash as a sign is one of them."""
    built = build_page(tmp_path, r":math:`a \backslash b` and :math:`\frac{1}{2} \hat{\sigma}`")
    assert (built.returncode, built.stderr) == (0, "")
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert page.count("<math") == 2
