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
    Key,
    Section,
    chosen_option,
    groups,
    leading_comment,
    options,
    reference,
    sections,
)
from hast_lightning.config import Config, config_folder, require_choice, require_range

KEYS = {key.name: key for section in sections() for key in section.keys}


def leaves(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key, found another way than the reference finds them."""
    for entry in fields(schema):
        hint: Any = get_type_hints(schema)[entry.name]
        entries = [part for part in get_args(hint) if is_dataclass(part)]
        if is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
            continue
        yield f"{prefix}{entry.name}"
        for part in entries:
            yield from leaves(part, f"{prefix}{entry.name}[].")  # type: ignore[arg-type]


def test_every_key_of_the_schemas_is_in_the_reference() -> None:
    text = reference()
    expected = list(leaves(Config))
    assert sorted(KEYS) == sorted(expected)
    assert len(expected) > 80
    missing = [name for name in expected if f"[`{name}`]{{" not in text]
    assert missing == []


def test_every_key_says_what_it_is() -> None:
    assert [name for name, key in KEYS.items() if not key.text] == []


def test_every_type_is_in_words() -> None:
    """And none is the name of a type of Python."""
    words = {"text", "integer", "number", "true", "false", "list", "of", "groups", "or", "null"}
    for name, key in KEYS.items():
        assert set(re.findall(r"\w+", key.kind)) <= words, name


def test_every_option_of_every_group_is_in_the_reference_and_says_what_it_is() -> None:
    text = reference()
    folders = {path.name for path in config_folder().iterdir() if any(path.glob("*.yaml"))}
    assert set(groups()) == folders
    for group in groups():
        assert f"\n## {group}\n" in text
        for name, comment in options(group).items():
            assert f"{group}={name}`" in text
            assert comment, f"conf/{group}/{name}.yaml has no comment at its head"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quantizer.weight_bits", ("integer", "3", "at least 2, at most 8")),
        ("quantizer.gradient", ("text", "pass_through", "one of `pass_through`, `clipped`")),
        ("quantizer.percentile", ("number", "99.9", "greater than 50, at most 100")),
        ("quantizer.overrides", ("list of groups", "[]", "")),
        ("quantizer.overrides[].weight_bits", ("integer or null", "null", "")),
        ("synthesis.bank.lr", ("number", "0.5", "greater than 0")),
        ("synthesis.augmentation.max_scale", ("number", "1.0", "at least `min_scale`, at most 1")),
        ("model.mean", ("list (number) or null", "null", "at least 0, at most 1")),
        ("schedule.student_steps", ("integer", None, "at least 0")),
        ("trainer.compile", ("true or false", "false", "")),
        ("runs", ("text, list (text) or null", "null", "")),
    ],
)
def test_type_default_and_limits_are_those_of_the_schema(
    name: str, expected: tuple[str, str | None, str]
) -> None:
    key = KEYS[name]
    assert (key.kind, key.default, key.allowed) == expected


def test_the_default_option_of_a_group_is_marked() -> None:
    assert chosen_option("model") == "digits"
    assert chosen_option("experiment") is None
    text = reference()
    assert "\n`model=digits` (default)\n" in text
    assert "\n`+experiment=digits_w2a2`\n" in text
    assert "default `3`" in text and "without arguments `lsq`" in text


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


def test_the_comment_at_the_head_of_a_file_ends_with_the_first_line_that_is_none(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# @package _global_\n# Two\n# lines.\nkey: 1\n# not this\n")
    assert leading_comment(file) == "Two lines."
