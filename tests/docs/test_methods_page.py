"""The page of methods has each of them, with links to parts that the reference describes."""

from __future__ import annotations

import re

import pytest

from configuration_reference import reference
from hast_lightning.config.method import CERTAINTIES as KNOWN
from methods_page import CERTAINTIES, anchor, composition, methods
from tests.composition import composed

METHODS = ("adasg", "ait", "genie", "hast", "qimera", "texq_style")


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
        "| 85.35 ± 1.11 | 87.15 ± 0.59 | 88.34 (Li et al. CVPR 2023), 86.34 (re-run by others; "
        "re-run in another paper) |"
        in row
        and row.endswith("| cifar10 resnet20 |")
        for row in rows
    )
    # Once, beside the first row of its bits.
    assert section(page, "hast").count("86.34 (re-run by others") == 1
    # What was meant to fail is no result of a method.
    assert "do_no_harm" not in page


def test_published_numbers_keep_their_label_and_stand_alone_where_nothing_was_measured(
    page: str,
) -> None:
    expected = {
        "ait": "resnet18 W4A4 65.73, resnet50 W4A4 68.27, mobilenet\\_v2 W4A4 66.47 (ARC + AIT; ",
        "hast": "resnet18 W3A3 42.58 (re-run by others; ",
        "genie": "resnet18 W2A4 65.10, resnet18 W3A3 66.84, resnet18 W2A2 54.01, ",
        "texq_style": "resnet18 W4A4 67.73",
    }
    for name, numbers in expected.items():
        (line,) = [x for x in section(page, name).splitlines() if x.startswith("*Published, not")]
        assert numbers in line
    assert "(first and last layer at 8 bits; Jeon et al. CVPR 2023" in section(page, "genie")
    # Of a method in the style of another with that one's name.
    assert "(TexQ; Chen et al. NeurIPS 2023)" in section(page, "texq_style")


def test_every_part_that_is_linked_is_in_the_reference_and_what_it_computes_is_said(
    page: str,
) -> None:
    text = reference()
    links = set(re.findall(r"\(#(part-[\w-]+)\)", page))
    assert len(links) > 12
    assert [link for link in links if f"({link})=" not in text] == []
    said = dict(
        re.findall(r"^\[\w+\]\(#(part-[\w-]+)\)\n: (\S.*(?:\n  .*|\n(?=\n  ))*)", page, re.M)
    )
    # Those of stages and sources, too: some methods are nothing else.
    assert set(said) == links
    assert "softmax(N(0, I))" in said["part-source-superposed-generator"]
    assert "swing convolutions" in said["part-stage-synthesize-swinging"]


def test_every_certainty_is_in_words() -> None:
    assert set(CERTAINTIES) == set(KNOWN)
