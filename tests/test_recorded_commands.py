"""Commands of committed results compose, in the words of today, to the runs that were made then."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hast_lightning.compare.counted import Counted, counted
from hast_lightning.compare.former import modern
from hast_lightning.compare.runs import FinishedRun
from hast_lightning.config import to_object
from hast_lightning.records.result import Result
from tests.composition import composed, composed_raw
from tests.docs.snippets import ROOT, commands, product_arguments

STUDIES = sorted(path.parent for path in ROOT.glob("experiments/*/README.md"))
RESULTS = sorted(
    path
    for study in STUDIES
    for path in [*study.glob("results/*.json"), *study.glob("results/*/result.json")]
)
OF_TODAY = [path for path in RESULTS if '"steps_by_stage"' in path.read_text(encoding="utf-8")]
FORMER = [path for path in RESULTS if path not in OF_TODAY]
FIRST = {path.parents[1 if path.name != "result.json" else 2]: path for path in reversed(OF_TODAY)}
"""A result of each study; the others are composed in the slow tests."""
ROW = re.compile(r"^\| `([^`|]+)` \| `([^`|]+)` \|$", re.MULTILINE)
SINCE_THEN = "<the commands above>"
"""What a README puts in the place of a command to which words are to be added."""


def table(text: str, head: str) -> dict[str, str]:
    """The old words and the new ones of a table with such a head."""
    _, _, behind = text.partition(f"\n| {head} | now |\n| --- | --- |\n")
    return dict(ROW.findall(behind.partition("\n\n")[0]))


RENAMED = table((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), "before")


def today(word: str, names: dict[str, str] = RENAMED) -> str:
    """A word of a command in the words of today."""
    key, equals, value = word.partition("=")
    if word in names:
        return names[word]
    if key in names:
        return f"{names[key]}{equals}{value}"
    for old, new in names.items():
        if old.endswith("*") and key.startswith(old[:-1]):
            return f"{new[:-1]}{key.removeprefix(old[:-1])}{equals}{value}"
    return word


def readme(study: Path) -> str:
    return (study / "README.md").read_text(encoding="utf-8")


def blocks(study: Path) -> Iterator[list[str]]:
    """The commands of each shell block of a study, loops over values unrolled."""
    for code in re.findall(r"```(?:sh)?\n(.*?)```", readme(study), re.DOTALL):
        loops: list[tuple[str, list[str]]] = []
        found = []
        for line in commands(code):
            if begin := re.fullmatch(r"for (\w+) in ([\w ]+); do", line):
                loops.append((begin[1], begin[2].split()))
            elif line == "done":
                loops.pop()
            elif loops:
                name, values = loops[-1]
                found += [re.sub(rf"\$\{{?{name}\}}?", value, line) for value in values]
            else:
                found.append(line)
        yield found


def words_since_then(study: Path) -> list[str]:
    """What a study adds to its commands, to repeat what recipes and methods were earlier."""
    found = [line for block in blocks(study) for line in block if line.startswith(SINCE_THEN)]
    return [line.removeprefix(SINCE_THEN) for line in found]


def recorded(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A result, and the words of its command today, those included that the README adds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    words = [today(word) for word in shlex.split(content["command"])[3:]]
    study = path.parents[1] if path.parent.name == "results" else path.parents[2]
    if content["recipe"].endswith("_adam"):
        bits = f"w{content['weight_bits']}a{content['activation_bits']}"
        words += shlex.split("".join(words_since_then(study)[:1]).replace("${bits}", bits))
    if gradient := re.search(r"_(clipped|pass_through)_", path.parent.name):
        # The option's own has become another one.
        words = [*words, f"quantizer.gradient={gradient[1]}"]
    return content, [word for word in words if not word.startswith("hydra.")]


def settings(result: Result, form: Any, then: Any) -> Counted:
    """What counts of a configuration of today, on the machine of the run that was made."""
    now: Any = OmegaConf.to_container(form, resolve=True)
    if now["trainer"]["precision"] == "auto":  # a run saves what it was there
        now["trainer"]["precision"] = then["trainer"]["precision"]
    return counted(FinishedRun(result, now))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path in FIRST.values() else pytest.mark.slow)
        for path in OF_TODAY
    ],
    ids=lambda path: path.parent.name,
)
def test_a_command_of_today_composes_to_the_run_that_was_made(path: Path) -> None:
    result = Result.read(path)
    words = [word for word in shlex.split(result.command)[3:] if not word.startswith("hydra.")]
    composed_words = composed_raw(*words)
    config = to_object(composed_words)
    bits = config.quantizer.weight_bits, config.quantizer.activation_bits
    assert (config.recipe, *bits) == (result.recipe, result.weight_bits, result.activation_bits)
    assert (config.method.name, config.schedule.name) == (result.method, result.budget)
    assert set(result.steps_by_stage) <= set(config.order)
    saved = path.parent / "config.yaml"
    if saved.is_file():
        then: Any = OmegaConf.to_container(OmegaConf.load(saved))
        of_then = counted(FinishedRun(result, then)).values
        assert len(of_then) > 40  # what trains nothing has the fewest settings
        added = ((), *map(shlex.split, words_since_then(path.parents[2])))
        forms = (composed_raw(*words, *more) for more in added)
        assert any(of_then == settings(result, form, then).values for form in forms)


@pytest.mark.parametrize("path", FORMER, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recorded_command_composes_to_the_run_that_was_made(path: Path) -> None:
    result, words = recorded(path)
    if not any(word.startswith("+experiment") for word in words):
        words = [*words, f"+experiment={result['recipe']}"]  # the default has another name now
    composed_words = composed_raw(*words)
    config = to_object(composed_words)
    quantizer = config.quantizer
    found = (config.recipe, quantizer.weight_bits, quantizer.activation_bits, config.model.name)
    expected = (result[name] for name in ("recipe", "weight_bits", "activation_bits", "model"))
    assert found == tuple(expected)
    steps = {
        name: int(getattr(stage, "steps", None) or 0) for name, stage in config.ordered.items()
    }
    assert steps["calibration"] == result["calibration_steps"]
    assert steps[config.order[-1]] == result["student_steps"]
    saved = path.parent / "config.yaml"
    if saved.is_file():
        assert config.seed == result["seed"]
        then: Any = modern(OmegaConf.to_container(OmegaConf.load(saved)))  # type: ignore[arg-type]
        made = Result.read(path)
        of_then, of_now = counted(FinishedRun(made, then)), settings(made, composed_words, then)
        assert len(of_then.values) > 60
        assert of_then.values == of_now.values
        assert {k for k, on in of_then.switches.items() if on} == {
            k for k, on in of_now.switches.items() if on
        }


def test_there_are_results_with_and_without_a_configuration() -> None:
    assert len(RESULTS) > 30
    assert len([path for path in RESULTS if (path.parent / "config.yaml").is_file()]) >= 8


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_commands_of_a_readme_compose(study: Path) -> None:
    words = [
        product_arguments(shlex.split(line))[1:]
        for block in blocks(study)
        for line in block
        if line.startswith("python -m hast_lightning") and "<" not in line
    ]
    assert words
    for each in words:
        composed(*(word for word in each if not word.startswith("hydra.run.dir")))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_readme_says_what_old_words_of_its_results_are_called_now(study: Path) -> None:
    names = table(readme(study), "then")
    assert names.items() <= RENAMED.items()
    for path in RESULTS:
        if path.is_relative_to(study):
            for word in shlex.split(json.loads(path.read_text())["command"])[3:]:
                assert today(word, names) == today(word), f"{path}: {word}"


def test_words_are_translated() -> None:
    assert today("synthesis.load=a/b=c") == "sources.bank.load=a/b=c"
    assert today("distillation.kd.weight=1") == "stages.distillation.terms.kd.weight=1"
    assert today("run=[synthesize]") == "order=[synthesis]"
    assert today("seed=0") == "seed=0"
    assert len(RENAMED) > 25
