"""Run small and bad budgets on six networks, and say how often the label-free choice is right.

``python -m experiments.do_no_harm.study run`` goes through the runs that have no result yet, one
after the other; ``... table`` prints what they say. The weights of ResNet-20 and MobileNetV1 are
named by two variables of the environment, see README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.choice import handed_back_now

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DIGITS = ("data=digits",)
OWN = ("model=own", "model.input_size=8")
NETWORKS: dict[str, tuple[str, ...]] = {
    "digits": ("model=digits", *DIGITS),
    **{
        name: (
            *OWN,
            f"model.factory=experiments.do_no_harm.networks:{name}",
            f"model.checkpoint=experiments/do_no_harm/weights/{name}.pt",
            "model.mean=[0.5]",
            "model.std=[0.5]",
            *DIGITS,
        )
        for name in ("plain", "vgg", "separable")
    },
    "resnet20": (
        *("model=resnet20_cifar10", "model.checkpoint=$CIFAR/resnet20-12fca82f.th"),
        *("data=npz", "data.path=$CIFAR/cifar10_test_first1017.npz"),
    ),
    "mobilenetv1": (
        *("model=mobilenetv1_x025", "model.checkpoint=$IMAGENET/mobilenetv1_x0.25.pth.tar"),
        *("data=npz", "data.path=experiments/do_no_harm/weights/photographs.npz"),
    ),
}
AT_BITS = {"resnet20": 3, "mobilenetv1": 6}
"""Bits of the large networks: at 4 a MobileNet is hardly usable already."""
SMALL_BUDGET = ("schedule=demo", "schedule.generator_steps=300", "schedule.calibration_steps=50")
LARGE_BUDGET = (
    *("schedule=quick", "schedule.images=128", "schedule.image_batch=64"),
    *("schedule.generator_steps=100", "schedule.calibration_steps=10"),
    *("schedule.student_batch=32", "schedule.unit_steps=30"),
)
BUDGETS = {
    # Images that look like nothing, images of some steps, and a rate that is too high.
    "few": ("schedule.image_steps=5", "schedule.student_steps=100"),
    "some": ("schedule.image_steps=60", "schedule.student_steps=100"),
    "fast": ("schedule.image_steps=60", "schedule.student_steps=100"),
}
METHODS = {
    "hast": ("method=hast", "stages.distillation.optimizer.lr=1e-4"),
    "adam": ("method=hast_adam",),
    "reconstruct": (
        *("method=reconstruct", "source@sources.bank=image_bank_of_schedule"),
        "stages.synthesis.terms.bns.relative=false",
        "stages.synthesis.terms.hard_cross_entropy.weight=10",
    ),
}
TERMS = ("bns", "cross_entropy")
"""What the source that calibrates is improved for, where that is a generator."""
FAST = {
    "hast": ("stages.distillation.optimizer.lr=1e-2",),
    "adam": ("stages.distillation.optimizer.lr=1e-2",),
    "reconstruct": ("stages.reconstruction.lr=3e-2",),
}


FEWER = {
    ("hast", "few"): (4,),
    ("adam", "some"): (2,),
    ("adam", "fast"): (4,),
    ("reconstruct", "some"): (2,),
    ("reconstruct", "fast"): (4,),
}
"""What is run on the plain networks, and at which bits; on the digits ResNet everything is."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of every run."""
    for network, of_network in NETWORKS.items():
        large = network in AT_BITS
        for method, of_method in METHODS.items():
            for budget, of_budget in BUDGETS.items():
                wanted = FEWER.get((method, budget), ())
                of_others = (AT_BITS[network],) if large and wanted else wanted
                for bits in (2, 4) if network == "digits" else of_others:
                    words = [*of_network, *of_method, f"quantizer.bits={bits}", "quantizer=lsq"]
                    words += [*(LARGE_BUDGET if large else SMALL_BUDGET), *of_budget]
                    words += FAST[method] if budget == "fast" else ()
                    if large:
                        words += ["schedule.student_steps=40", "schedule.image_steps=30"]
                        words += ["schedule.image_steps=3"] if budget == "few" else []
                    if network == "mobilenetv1":
                        words += ["stages.calibration.source=bank"]
                        if method != "reconstruct":
                            words += [f"stages.calibration.terms.{t}.enabled=false" for t in TERMS]
                    yield f"{network}_{method}_{budget}_w{bits}a{bits}", words


def run_all() -> None:
    """Go through the runs that have no result yet."""
    from hast_lightning.cli.main import main

    root = HERE.parents[1]
    os.chdir(root)
    for name, words in runs():
        folder = RESULTS / name
        if (folder / "result.json").exists():
            continue
        given = [os.path.expandvars(word) for word in words]
        beside = ("export=none", "report=false", "trainer.threads=1", "callbacks.progress=false")
        sys.argv = ["hast-lightning", *given, *beside, f"hydra.run.dir=scratch/{name}"]
        print(name, flush=True)
        # A run that is refused leaves no result, and a line.
        with contextlib.suppress(SystemExit):
            main()
        found = root / "scratch" / name / "result.json"
        if found.exists():
            folder.mkdir(parents=True, exist_ok=True)
            kept = json.loads(found.read_text())
            kept["command"] = " ".join(["python", "-m", "hast_lightning", *words])
            (folder / "result.json").write_text(json.dumps(kept, indent=2) + "\n")


def measure_of(stage: dict[str, Any], kind: str, what: str) -> float:
    """Return a label-free measure, the smaller the better."""
    value = float(stage[kind][what])
    return -value if what == "agreement" else value


def table() -> None:
    """Print for each measure how often it prefers the better student, and what it costs."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/result.json"))]
    print(f"{len(found)} runs")
    kinds = [(k, w) for k in ("reference", "noise") for w in ("error", "agreement")]
    print("| measure | tolerance | pairs right | runs right | points lost | worst |")
    for kind, what in kinds:
        for tolerance in (0.0, 0.1, 0.3) if what == "error" else (0.0,):
            print(_row(found, kind, what, tolerance))
    last = [_top1(f)[-1] for f in found]
    best = [max(_top1(f)) for f in found]
    lost = [high - end for high, end in zip(best, last, strict=True)]
    right = sum(x <= 0 for x in lost)
    print(f"| always the last | | | {right}/{len(found)} | {_mean(lost):.2f} | {max(lost):.1f} |")
    print("| network | runs | handed back right | last right | handed back | last | best |")
    for network in NETWORKS:
        print(_row_of_network(network))


def _row(found: list[dict[str, Any]], kind: str, what: str, tolerance: float) -> str:
    pairs = right_pairs = right_runs = 0
    lost = []
    for result in found:
        stages = list(result["judged"].values())
        scores = [measure_of(stage, kind, what) for stage in stages]
        top1 = _top1(result)
        for i in range(len(stages)):
            for j in range(i):
                if abs(top1[i] - top1[j]) >= 1:
                    pairs += 1
                    right_pairs += (scores[i] < scores[j]) == (top1[i] > top1[j])
        best = min(range(len(scores)), key=scores.__getitem__)
        if what == "error" and not scores[best] < (1 - tolerance) * scores[-1]:
            best = len(scores) - 1
        lost.append(max(top1) - top1[best])
        right_runs += max(top1) - top1[best] < 0.5
    right = f"{right_pairs}/{pairs} | {right_runs}/{len(found)}"
    return f"| {kind} {what} | {tolerance} | {right} | {_mean(lost):.2f} | {max(lost):.1f} |"


def _row_of_network(network: str) -> str:
    """Return how often what was handed back, and the last, is within half a point of the best."""
    paths = sorted(RESULTS.glob(f"{network}_*/result.json"))
    found = [json.loads(path.read_text()) for path in paths]
    best, last = [max(_top1(f)) for f in found], [_top1(f)[-1] for f in found]
    kept = [float(f["judged"][handed_back_now(f)]["evaluation"]["top1"]) for f in found]
    right = [sum(b - x < 0.5 for b, x in zip(best, each, strict=True)) for each in (kept, last)]
    means = " | ".join(f"{_mean(each):.1f}" for each in (kept, last, best))
    return f"| {network} | {len(found)} | {right[0]} | {right[1]} | {means} |"


def _top1(result: dict[str, Any]) -> list[float]:
    return [stage["evaluation"]["top1"] for stage in result["judged"].values()]


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    {"run": run_all, "table": table}[parser.parse_args().what]()
