"""The page of methods has each of them, with links to parts that the reference describes."""

from __future__ import annotations

import re

import pytest

from configuration_reference import reference
from hast_lightning.config.method import CERTAINTIES as KNOWN
from methods_page import CERTAINTIES, anchor, composition, methods
from tests.composition import composed

METHODS = ("adasg", "genie", "hast", "texq_style")


@pytest.fixture(
    scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)], ids=str
)
def page(request: pytest.FixtureRequest) -> str:
    """The list of some methods, composed not before they are needed, or of all."""
    return methods(*(METHODS if request.param == "some" else ()))


def section(page: str, name: str) -> str:
    """What the page says of one method."""
    return re.split(r"\n## ", page.partition(f"\n## {name}\n")[2])[0]


def test_a_method_has_a_row_and_a_section(page: str) -> None:
    names = re.findall(r"^\| \[`(\w+)`\]", page, re.M)
    assert set(names) >= set(METHODS)
    assert len(names) == page.count("\n(method-")
    for name in names:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| [`{name}`]")]
        about = composition(name).method
        assert about.name == name
        assert about.paper in row and about.title in row and CERTAINTIES[about.certainty] in row
        assert f"(#method-{anchor(name)})" in row and f"\n(method-{anchor(name)})=\n" in page


def test_the_parts_of_hast_are_those_that_a_run_has(page: str) -> None:
    config = composed("model=resnet20_cifar10", "model.pretrained=false", "schedule=released")
    text = section(page, "hast")
    assert f"| weight {config.stages['distillation'].terms['alignment'].weight}" in text
    rows = [line for line in text.splitlines() if re.match(r"\| `[\w.]+` \|", line)]
    kinds = {
        place: kind for place, kind in re.findall(r"^\| `([\w.]+)` \| \w+ \[(\w+)\]", text, re.M)
    }
    assert len(kinds) == len(rows) == 14
    for place, kind in kinds.items():
        node = config
        for step in place.split("."):
            node = node[step] if isinstance(node, dict) else getattr(node, step)
        assert node.kind == kind, place


def test_a_method_has_what_was_measured_of_it_beside_what_was_published(page: str) -> None:
    rows = [
        line for line in section(page, "hast").splitlines() if "resnet20_cifar10 | W3A3" in line
    ]
    assert any(
        "| 85.35 ± 1.11 | 87.15 ± 0.59 | 88.34 (Li et al. CVPR 2023) |" in row
        and row.endswith("| cifar10 resnet20 |")
        for row in rows
    )
    # What was meant to fail is no result of a method.
    assert "do_no_harm" not in page


def test_every_part_that_is_linked_is_in_the_reference_and_what_it_computes_is_said(
    page: str,
) -> None:
    text = reference()
    links = set(re.findall(r"\(#(part-[\w-]+)\)", page))
    assert len(links) > 12
    assert [link for link in links if f"({link})=" not in text] == []
    computing = {link for link in links if link.startswith(("part-term", "part-transform"))}
    said = set(re.findall(r"^\[\w+\]\(#(part-[\w-]+)\)\n: \S", page, re.M))
    assert computing <= said


def test_every_certainty_is_in_words() -> None:
    assert set(CERTAINTIES) == set(KNOWN)
