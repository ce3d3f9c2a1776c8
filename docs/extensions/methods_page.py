"""The list of methods, written from ``conf/method`` and from the parts that each consists of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from omegaconf import DictConfig, OmegaConf

from configuration_reference import (
    composed_with,
    documentation,
    escaped,
    options,
    part_anchor,
    parts_of,
)
from hast_lightning.compare.published import all_published
from hast_lightning.compare.rows import Row, summarize
from hast_lightning.compare.runs import collect
from hast_lightning.config import config_folder
from hast_lightning.core.bits import Widths
from hast_lightning.core.part import part_class
from recipe_heads import Head

CERTAINTIES = {
    "code": "released code",
    "paper": "the paper",
    "summary": "others' summary",
    "ours": "ours in part",
}
"""Where formulas and constants are from, by the value of ``method.certainty``."""
NEVER_SHOWN = ("kind", "load", "enabled")
NOT_COMPARED = ("do_no_harm",)
"""Studies whose runs are meant to fail."""
HEADER = "| network | W/A | top-1 | agreement | published | budget, quantizer, settings | study |"
"""Of what was measured."""
NETWORK, BUDGET = "model=resnet20_cifar10", "schedule=released"
"""What settings are shown for: the authors' own budget, on a network that most methods know."""


def methods(*names: str) -> str:
    """Return the whole list, as Markdown from second-level headings on; without names of all."""
    heads = options("method")
    found = {name: composition(name) for name in names or heads}
    lines = [*_overview(found), *_sections(found, heads), *_computations(found)]
    return "\n".join(lines)


@cache
def composition(name: str) -> DictConfig:
    """Return what a method is composed of."""
    return composed_with(f"method={name}", NETWORK, BUDGET)


def _overview(found: dict[str, DictConfig]) -> Iterator[str]:
    """A table of all methods, oldest first."""
    yield "| `method=` | method | paper | constants from | stages |"
    yield "| --- | --- | --- | --- | --- |"
    for name in sorted(found, key=lambda name: (found[name].method.year, name)):
        about = found[name].method
        cells = (
            f"[`{name}`](#method-{anchor(name)})",
            about.title,
            about.paper,
            CERTAINTIES[about.certainty],
            ", ".join(found[name].order),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def anchor(name: str) -> str:
    """Return a name as it stands in addresses."""
    return name.replace("_", "-")


def _sections(found: dict[str, DictConfig], heads: dict[str, Head]) -> Iterator[str]:
    for name, config in found.items():
        text, facts = heads[name].text, heads[name].facts
        yield f"\n(method-{anchor(name)})=\n\n## {name}\n\n{escaped(text)}\n"
        if "Command" in facts:
            yield f"```sh\n{facts['Command']}\n```\n"
        for fact in ("Expect", "Takes"):
            if fact in facts:
                yield f"*{fact}:* {escaped(facts[fact])}\n"
        yield from _results(name)
        yield from _parts(config)


@cache
def measured() -> dict[str, list[tuple[str, Row]]]:
    """Return the rows of the studies in ``experiments``, each with its study, by method."""
    found: dict[str, list[tuple[str, Row]]] = defaultdict(list)
    for results in sorted(config_folder().parent.glob("experiments/*/results")):
        study = results.parent.name
        if study not in NOT_COMPARED and any(results.rglob("*.json")):
            for row in summarize(collect([results.parent])):
                found[row.method].append((study, row))
    return found


def _results(name: str) -> Iterator[str]:
    """A table of what was measured, beside what papers say; below it what they say of the rest."""
    papers = _papers(name)
    measurements = [(study, row) for study, row in measured().get(name, []) if row.score]
    lines = [_line(study, row, papers) for study, row in measurements]
    if lines:
        yield HEADER
        yield f"|{' --- |' * (HEADER.count('|') - 1)}"
        yield from (*lines, "")
    if papers:
        yield f"*Published, not measured here:* {escaped(_listed(papers))}.\n"


def _line(study: str, row: Row, papers: Papers) -> str:
    # Taken, since it stands once: it is of the method as published, whatever rows switch off.
    paper = papers.pop((row.model, row.bits), {})
    about = (row.budget, row.quantizer, str(row.settings))
    cells = (
        row.model,
        Widths(*row.bits).short,
        _number(row.top1),
        _number(row.agreement),
        ", ".join(f"{top1} ({told})" for told, top1 in paper.items()),
        escaped(", ".join(filter(None, about))),
        # A folder of experiments/, in words that a narrow column can break.
        study.replace("_", " "),
    )
    return f"| {' | '.join(cells)} |"


Papers = dict[tuple[str, tuple[int, int]], dict[str, str]]
"""Published top-1 by network and bits, then by what the paper is and what it says of the number."""


def _papers(method: str) -> Papers:
    """What papers say of a method, and of what they made of it: ``ARC + AIT`` of ``ait``."""
    found: Papers = defaultdict(dict)
    for row in all_published():
        # A method in the style of another has its numbers, under its name.
        if method.removesuffix("_style") in re.findall(r"\w+", row.method.lower()):
            label = re.sub(rf"^{method}\b[ ,(]*", "", row.method, flags=re.I).rstrip(")")
            told = "; ".join(filter(None, (label, row.source)))
            found[row.model, row.bits][told] = str(row.top1)
    return found


def _listed(papers: Papers) -> str:
    """Return the numbers of each paper in a row, with label and source behind them."""
    by_paper: dict[str, list[str]] = defaultdict(list)
    for (model, bits), paper in papers.items():
        for told, top1 in paper.items():
            by_paper[told].append(f"{model} {Widths(*bits).short} {top1}")
    return "; ".join(f"{', '.join(numbers)} ({told})" for told, numbers in by_paper.items())


def _number(found: object) -> str:
    return "" if found is None else str(found)


def _parts(config: DictConfig) -> Iterator[str]:
    """A table of the parts that a method consists of; those of the quantizer are not its own."""
    yield "| place | part | settings |"
    yield "| --- | --- | --- |"
    for place, group, node in parts_of(config):
        if place.startswith("quantizer"):
            continue
        kind = str(node.kind)
        link = f"[{kind}](#{part_anchor(group, kind)})"
        # The stage around it says how many steps a stage in a stage has.
        unsaid = ("steps",) if group == "stage" and place.count(".") > 1 else ()
        yield f"| `{place}` | {group} {link} | {_settings(node, unsaid)} |"
    yield ""


def _settings(node: DictConfig, unsaid: tuple[str, ...]) -> str:
    """The plain settings of a part in one line; of one that is switched off that it is."""
    shown = ["switched off"] if not node.get("enabled", True) else []
    for name in map(str, node):
        value = OmegaConf.select(node, name, throw_on_missing=False)
        if name not in (*NEVER_SHOWN, *unsaid) and isinstance(value, bool | int | float | str):
            shown.append(f"{name} {str(value).lower() if isinstance(value, bool) else value}")
    return escaped(", ".join(shown))


def _computations(found: dict[str, DictConfig]) -> Iterator[str]:
    """What each part of any method computes, once."""
    used = {
        (group, str(node.kind)) for config in found.values() for _, group, node in parts_of(config)
    }
    for group in ("source", "stage", "term", "transform", "hook"):
        names = sorted(name for of, name in used if of == group)
        if names:
            yield f"\n## What {group}s compute\n"
        for name in names:
            text = documentation(part_class(group, name)).replace("\n", "\n  ")
            yield f"[{name}](#{part_anchor(group, name)})\n: {text}\n"
