"""The reference has every key and every option, and says what each is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf import MISSING

from configuration_reference import (
    GROUPS_OF_PARTS,
    Key,
    Section,
    chosen_option,
    default_parts,
    groups,
    is_shipped,
    options,
    part_anchor,
    part_sections,
    reference,
    sections,
)
from hast_lightning.config import Config, config_folder
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.core.part import Part, parts
from recipe_heads import Head, read_head

KEYS = {key.name: key for section in sections() for key in section.keys}
PARTS = part_sections()
PART_KEYS = {
    f"{group}-{name}-{key.name}": key
    for group, classes in PARTS.items()
    for name, found in classes.items()
    for section in found
    for key in section.keys
}


def leaves(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key, found another way than the reference finds them."""
    for entry in fields(schema):
        hint: Any = get_type_hints(schema)[entry.name]
        entries = [part for part in get_args(hint) if is_dataclass(part)]
        if entry.name == "kind":
            continue
        if is_dataclass(hint) and not issubclass(hint, Part):  # type: ignore[arg-type]
            yield from leaves(hint, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
            continue
        yield f"{prefix}{entry.name}"
        for part in entries if str(hint).startswith("list") else ():
            yield from leaves(part, f"{prefix}{entry.name}[].")  # type: ignore[arg-type]


def test_every_key_of_the_schemas_is_in_the_reference() -> None:
    text = reference()
    expected = list(leaves(Config))
    assert sorted(KEYS) == sorted(expected)
    assert len(expected) > 80
    missing = [name for name in expected if f"[`{name}`]{{" not in text]
    assert missing == []


def test_every_part_and_every_key_of_it_is_in_the_reference() -> None:
    text = reference()
    assert list(PARTS) == list(GROUPS_OF_PARTS)
    shipped = {
        (group, name, cls)
        for group, classes in parts().items()
        for name, cls in classes.items()
        if is_shipped(cls)
    }
    assert {(group, name) for group, classes in PARTS.items() for name in classes} == {
        (group, name) for group, name, _ in shipped
    }
    assert len(shipped) > 20
    for group, name, cls in shipped:
        assert f"({part_anchor(group, name)})=" in text
        _, _, section = text.partition(f"\n### {group}: {name}\n")
        section = re.split(r"\n##+ ", section)[0]
        assert [key for key in leaves(cls) if f"[`{key}`]{{" not in section] == [], name


def test_every_part_says_what_it_is() -> None:
    assert [
        name for classes in PARTS.values() for name, (own, *_) in classes.items() if not own.text
    ] == []


def test_parts_of_a_run_without_arguments_are_marked() -> None:
    assert default_parts()["source", "image_bank"] == ["sources.bank"]
    assert default_parts()["ranges", "lsq"] == ["quantizer.ranges"]
    assert (
        "Without arguments at `stages.synthesis.terms.bns`, `stages.calibration.terms.bns`."
        in reference()
    )


def test_every_key_says_what_it_is() -> None:
    keys = {**KEYS, **PART_KEYS}
    assert [name for name, key in keys.items() if not key.text] == []


def test_every_type_is_in_words() -> None:
    """And none is the name of a type of Python."""
    words = (
        "text integer number true false list mapping mappings of groups or null by name each "
        "a part the group kind"
    )
    allowed = {
        *words.split(),
        *GROUPS_OF_PARTS,
        *(name for found in PARTS.values() for name in found),
    }
    for name, key in {**KEYS, **PART_KEYS}.items():
        assert set(re.findall(r"\w+", key.kind)) <= allowed, name


def test_every_option_of_every_group_is_in_the_reference_and_says_what_it_is() -> None:
    text = reference()
    folders = {path.name for path in config_folder().iterdir() if any(path.glob("*.yaml"))}
    assert set(groups()) == folders
    for group in groups():
        assert f"\n## {group}\n" in text
        for name, head in options(group).items():
            assert f"{group}={name}`" in text
            assert head.text, f"conf/{group}/{name}.yaml has no comment at its head"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quantizer.weight_bits", ("integer or null", "3", "at least 1, at most 8")),
        ("quantizer.gradient", ("text", "pass_through", "one of `pass_through`, `clipped`")),
        ("quantizer.overrides", ("list of groups", "[]", "")),
        ("quantizer.overrides[].weight_bits", ("integer or null", "null", "")),
        ("quantizer.ranges", ("a part of the group ranges", None, "")),
        ("sources", ("by name, each a part of the group source", "{}", "")),
        ("model.mean", ("list (number) or null", "null", "at least 0, at most 1")),
        ("schedule.student_steps", ("integer or null", "null", "at least 0")),
        ("schedule.student_batch", ("integer or null", "null", "at least 1")),
        ("trainer.compile", ("true or false", "false", "")),
        ("runs", ("text, list (text) or null", "null", "")),
        ("ranges-percentile-percentile", ("number", "99.9", "greater than 50, at most 100")),
        ("source-image_bank-lr", ("number", "0.5", "greater than 0")),
        (
            "transform-crop_and_flip-max_scale",
            ("number", "1.0", "at least `min_scale`, at most 1"),
        ),
        ("term-kl-weight", ("number", "1.0", "at least 0")),
        ("stage-distill-optimizer.name", ("text", "sgd", "one of `sgd`, `adam`, `adamw`")),
        ("stage-distill-hook", ("a part of the group hook or null", "null", "")),
        ("stage-alternate-synthesis", ("a stage of kind synthesize", None, "")),
    ],
)
def test_type_default_and_limits_are_those_of_the_schema(
    name: str, expected: tuple[str, str | None, str]
) -> None:
    key = {**KEYS, **PART_KEYS}[name]
    assert (key.kind, key.default, key.allowed) == expected


def test_the_default_option_of_a_group_is_marked() -> None:
    assert chosen_option("model") == "digits"
    assert chosen_option("experiment") is None
    text = reference()
    assert "\n`model=digits` (default)\n" in text
    assert "\n`+experiment=digits`\n" in text
    assert "; default `released`; without arguments `demo`\n" in text


CHOICES = ("red", "green")


@dataclass
class Inner:
    """Inside."""

    size: int = MISSING
    """How ``large``, as :func:`abs` has it."""

    def __post_init__(self) -> None:
        require_range("outer.inner.size", self.size, 1, 2**4)


@dataclass
class Outer:
    """Outside."""

    color: str | None = "red"
    silent: bool = True
    """Of this one only."""
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        require_choice("color", self.color or "red", CHOICES)


def test_a_schema_is_read_field_by_field() -> None:
    assert list(sections(Outer)) == [
        Section(
            "",
            "Outside.",
            [
                Key("color", "text or null", "red", "one of `red`, `green`", ""),
                Key("silent", "true or false", "true", "", "Of this one only."),
            ],
        ),
        Section(
            "inner",
            "Inside.",
            [
                Key(
                    "inner.size",
                    "integer",
                    None,
                    "at least 1, at most 16",
                    "How `large`, as `abs` has it.",
                )
            ],
        ),
    ]


def _require_side(key: str, value: int) -> None:
    require_range(key, value, 1, 9)


@dataclass
class Checked:
    """Checks in a loop, and by a check of the module."""

    width: int = 1
    height: int = 1
    depth: int = 1

    def __post_init__(self) -> None:
        least = {"height": 2}
        for name in ("width", "height"):
            require_range(f"box.{name}", getattr(self, name), least.get(name, 0))
        _require_side("box.depth", self.depth)


def test_checks_in_loops_and_in_checks_of_the_module_are_read() -> None:
    (section,) = sections(Checked)
    assert [key.allowed for key in section.keys] == [
        "at least 0",
        "at least 2",
        "at least 1, at most 9",
    ]


def test_the_head_of_a_file_ends_with_the_first_line_that_is_no_comment(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "# @package _global_\n# Two\n# lines.\n#\n# Command:  run\n#           it\n"
        "# Takes:    long\nkey: 1\n# not this\n"
    )
    assert read_head(file) == Head("Two lines.", {"Command": "run it", "Takes": "long"})
