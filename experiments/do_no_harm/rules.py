"""How much each rule of choice would have lost, over all results with several judged stages.

    python -m experiments.do_no_harm.rules

A rule sees what was measured without labels; the loss is the top-1 of the best student of a run
less that of the chosen one.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hast_lightning.config.safeguard import DECIDING, deciding_error
from hast_lightning.safeguard.reference import JUDGE_VERSION

EXPERIMENTS = Path(__file__).resolve().parents[1]
Stages = list[dict[str, dict[str, float]]]
"""What was measured behind each stage, by kind of images."""
Rule = Callable[[Stages], int]


def by_error(stages: Stages, tolerance: float, images: str = "reference") -> int:
    """Choose the least error, or the last student if none is better by more than the tolerance."""
    errors = [stage[images]["error"] for stage in stages]
    best = min(range(len(errors)), key=lambda number: errors[number])
    return best if errors[best] < (1 - tolerance) * errors[-1] else len(stages) - 1


def by_both(stages: Stages, tolerance: float) -> int:
    """Choose as :func:`by_error` by the judge's own mean of the errors on two kinds of images."""
    errors = [deciding_error({kind: stage[kind]["error"] for kind in DECIDING}) for stage in stages]
    return by_error([{"both": {"error": error}} for error in errors], tolerance, "both")


def by_mean(stages: Stages, leaves: float) -> int:
    """Choose by the geometric mean of both errors in which leaves count so many times."""
    products = [
        stage["reference"]["error"] * stage["leaves"]["error"] ** leaves for stage in stages
    ]
    return by_error([{"both": {"error": product}} for product in products], 0.0, "both")


def by_agreement(stages: Stages) -> int:
    """Choose the most answers alike, the later of two equal ones."""
    return max(range(len(stages)), key=lambda n: (stages[n]["reference"]["agreement"], n))


RULES: dict[str, Rule] = {
    "always the last": lambda stages: len(stages) - 1,
    **{
        f"error on reference images, tolerance {tolerance}": partial(by_error, tolerance=tolerance)
        for tolerance in (0.0, 0.05, 0.1, 0.2)
    },
    "error on noise": partial(by_error, tolerance=0.0, images="noise"),
    "agreement on reference images": by_agreement,
}


OF_LEAVES: dict[str, Rule] = {
    name.format(tolerance): partial(rule, tolerance=tolerance)
    for tolerance in (0.0, 0.05, 0.1)
    for name, rule in {
        "error on reference images, tolerance {}": by_error,
        "error on leaves, tolerance {}": partial(by_error, images="leaves"),
        "geometric mean of both errors as the judge has it, tolerance {}": by_both,
    }.items()
}
OF_LEAVES |= {
    f"geometric mean of both errors, leaves {times} times": partial(by_mean, leaves=times)
    for times in (0.5, 1, 1.5, 2.5, 3)
}
"""Rules that need pictures of leaves, the present one among them, and the former one."""


def judged() -> Iterator[tuple[str, Stages, list[float]]]:
    """Yield run, what was measured and top-1 behind each stage, of the present judge alone."""
    for path in sorted(EXPERIMENTS.glob("*/results/**/result.json")):
        result: dict[str, Any] = json.loads(path.read_text())
        stages = list(result.get("judged", {}).values())
        truth = [stage.get("evaluation", {}).get("top1") for stage in stages]
        if result.get("judge_version") == JUDGE_VERSION and len(stages) > 1 and None not in truth:
            yield f"{path.parts[-4]}/{path.parent.name}", stages, truth


def print_rules(rules: Mapping[str, Rule], runs: Sequence[tuple[str, Stages, list[float]]]) -> None:
    """Print one row a rule."""
    print(f"| rule, {len(runs)} runs | mean loss | lost more than 1 | the most |")
    print("| --- | --- | --- | --- |")
    for name, rule in rules.items():
        losses = [(max(top1) - top1[rule(stages)], run) for run, stages, top1 in runs]
        most, where = max(losses)
        many = sum(loss > 1 for loss, _ in losses)
        mean = statistics.mean(loss for loss, _ in losses)
        print(f"| {name} | {mean:.2f} | {many} | {most:.1f} ({where}) |")


def main() -> None:
    """Print the rules over all runs, and those of leaves over the runs that have them."""
    runs = list(judged())
    print_rules(RULES, runs)
    print()
    print_rules(OF_LEAVES, [run for run in runs if all("leaves" in stage for stage in run[1])])


if __name__ == "__main__":
    main()
