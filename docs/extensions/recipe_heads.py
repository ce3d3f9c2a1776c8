"""The comments at the head of the files of ``conf/``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FACTS = ("Command", "Expect", "Takes")
FACT = re.compile(rf"(?P<name>{'|'.join(FACTS)}):\s+(?P<text>.*)")


@dataclass(frozen=True)
class Head:
    """What the head of a file says.

    Attributes:
        text: What the file is, in one paragraph.
        facts: The command that uses it, the result to expect and how long it takes, by name;
            empty where the head does not say.
    """

    text: str
    facts: dict[str, str]


def read_head(path: Path) -> Head:
    """Return the comment lines at the head of a YAML file, without Hydra's own ``# @package``."""
    text: list[str] = []
    facts: dict[str, list[str]] = {}
    lines = text
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words = line.lstrip("# ").rstrip()
        if line.startswith("# @") or not words:
            continue
        if found := FACT.fullmatch(words):
            lines = facts.setdefault(found["name"], [])
            words = found["text"]
        lines.append(words)
    return Head(" ".join(text), {name: " ".join(words) for name, words in facts.items()})
