"""The registry of parts: names, kinds, copies, and fields that stay settings."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import field
from typing import ClassVar

import pytest
import torch
from torch import nn

from hast_lightning.core import part as registry
from hast_lightning.core.part import Part, part, part_class, parts
from hast_lightning.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _known_parts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = {group: dict(classes) for group, classes in registry._PARTS.items()}
    monkeypatch.setattr(registry, "_PARTS", copied)


@pytest.fixture
def scaled() -> type[Part]:
    @part("thing", "scaled")
    class Scaled(Part):
        """A first
        paragraph.

        A second one.
        """

        factor: float = 2.0
        inner: dict[str, Part] = field(default_factory=dict)

    return Scaled


def test_a_part_is_a_dataclass_that_its_group_and_name_find(scaled: type[Part]) -> None:
    assert part_class("thing", "scaled") is scaled
    assert parts()["thing"] == {"scaled": scaled}
    assert [each.name for each in dataclasses.fields(scaled)] == ["kind", "factor", "inner"]
    assert scaled.summary() == "A first paragraph."


def test_its_kind_is_stored_with_its_settings(scaled: type[Part]) -> None:
    made = scaled(factor=3.0)
    assert (made.kind, made.factor) == ("scaled", 3.0)
    with pytest.raises(TypeError, match="positional"):
        scaled(3.0)


def test_a_name_that_two_classes_want_is_refused(scaled: type[Part]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^thing=scaled is the name of two parts: .*Other"
    ):

        @part("thing", "scaled")
        class Other(Part):
            pass

    assert part_class("thing", "scaled") is scaled
    # In another group the name is free; and a module may be imported again.
    assert part("other", "scaled")(type("Other", (Part,), {})) is part_class("other", "scaled")
    assert part("thing", "scaled")(scaled) is part_class("thing", "scaled")


def test_a_part_that_nobody_has_is_refused_with_those_there_are(scaled: type[Part]) -> None:
    with pytest.raises(ConfigurationError, match=r"^thing=shifted .*modules=.*Known: scaled$"):
        part_class("thing", "shifted")


def test_a_field_is_a_setting_and_all_else_is_state(scaled: type[Part]) -> None:
    made = scaled(inner={"one": scaled()})
    made.inner = {"two": scaled()}
    made.register_buffer("seen", torch.zeros(2))
    made.held = nn.Linear(1, 1, bias=False)
    assert list(made.state_dict()) == ["seen", "held.weight"]


def test_a_deep_copy_shares_nothing(scaled: type[Part]) -> None:
    made = scaled(factor=5.0, inner={"one": scaled(factor=7.0)})
    made.register_buffer("seen", torch.zeros(2))
    copied = copy.deepcopy(made)
    copied.seen += 1
    copied.inner["one"].factor = 8.0
    assert (copied.kind, copied.factor) == ("scaled", 5.0)
    assert made.inner["one"].factor == 7.0
    assert made.seen.tolist() == [0, 0]


def test_what_is_annotated_as_of_the_class_is_state_when_it_is_set() -> None:
    """An annotation tells the type of what ``build`` makes, and must not keep it from files."""

    @part("thing", "built")
    class Built(Part):
        weight: ClassVar[nn.Parameter]

    made = Built()
    made.weight = nn.Parameter(torch.zeros(3))
    assert list(made.state_dict()) == ["weight"]
