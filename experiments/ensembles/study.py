"""Five clients teach one student together: equal weights against searched ones.

``python -m experiments.ensembles.study run`` trains the clients and goes through the runs that have
no result yet; ``... table`` prints what they say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.ensembles.clients import CLIENTS, make_clients, weights_file
from experiments.resumable import SCRATCH, command

HERE = Path(__file__).resolve().parent
RESULTS, WEIGHTS = HERE / "results", SCRATCH / "ensembles_weights"
SEEDS = (0, 1, 2)
FACTORY = "experiments.do_no_harm.networks:plain"
COMMON = (
    *("data=digits", "schedule=released", "sources.pool.size=1280", "sources.pool.batch_size=32"),
    *("safeguard.images=64", "safeguard.iterations=50", "trainer=cpu", "trainer.threads=1"),
    *("callbacks.progress=false", "report=false", "export=none"),
)
QUANTIZED = (
    *("method=coboosting_style", "quantizer=lsq", "quantizer.bits=4", "schedule.image_steps=100"),
    *("sources.bank.size=256", "sources.bank.batch_size=256"),
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "searched_w4a4": QUANTIZED,
    "untrained_w4a4": (
        *(*QUANTIZED, "+stage@stages.weighing=weigh_teachers", "stages.weighing.source=bank"),
        *("stages.weighing.batch_size=64", "stages.weighing.steps=100"),
        "order=[synthesis,calibration,weighing]",
    ),
    "matched_w4a4": (*QUANTIZED, "stages.boosting.synthesis.terms.bns.weight=1"),
    "float": ("method=coboosting",),
}
"""What differs. ``untrained`` has a sixth teacher of random weights, searches weights on
the bank, and trains no student. ``matched`` has hard samples that match all BatchNorms.
``float`` trains a new student in floating point."""


def network(key: str, seed: int, client: int) -> list[str]:
    """Return the words that put a client's network under ``key``."""
    words = [f"{key}.factory={FACTORY}", f"{key}.checkpoint={weights_file(seed, client)}"]
    facts = [f"{key}.input_size=8", f"{key}.mean=[0.5]", f"{key}.std=[0.5]"]
    return [*words, *facts, f"{key}.name=client{client}"]


def teachers(seed: int, largest: int) -> Iterator[str]:
    """Yield the words that have the other clients teach, too."""
    for client in range(CLIENTS):
        if client != largest:
            yield f"+model@teachers.client{client}=own"
            yield from network(f"teachers.client{client}", seed, client)


def untrained() -> Iterator[str]:
    """Yield the words of a teacher that was never trained."""
    key = "teachers.untrained"
    yield f"+model@{key}=own"
    yield from (f"{key}.factory={FACTORY}", f"{key}.input_size=8", f"{key}.name=untrained")
    yield from (f"{key}.mean=[0.5]", f"{key}.std=[0.5]", f"{key}.pretrained=false")


def record_file(seed: int) -> Path:
    """Return where it is written what the clients of a seed saw and score."""
    return RESULTS / f"clients_seed{seed}" / "clients.json"


def record(seed: int) -> dict[str, Any]:
    """Return what is known of the clients of a seed."""
    content: dict[str, Any] = json.loads(record_file(seed).read_text())
    return content


def largest(seed: int) -> int:
    """Return the client with most images, of which the student is made: no label says which."""
    images = [client["images"] for client in record(seed)["clients"]]
    return images.index(max(images))


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of every run."""
    for variant, words in VARIANTS.items():
        for seed in SEEDS:
            own = ["model=own", *network("model", seed, largest(seed))]
            others = list(teachers(seed, largest(seed)))
            others += list(untrained()) if variant.startswith("untrained") else []
            yield f"{variant}_seed{seed}", [*own, *others, *COMMON, *words, f"seed={seed}"]


def _row(name: str, values: list[float]) -> None:
    figures = [f"{value:.1f}" for value in values] + ["-"] * (len(SEEDS) - len(values))
    print("|", " | ".join([name, *figures, f"{mean(values):.1f} ± {stdev(values):.1f}"]), "|")


def _results(variant: str) -> list[dict[str, Any]]:
    paths = [RESULTS / f"{variant}_seed{seed}" / "result.json" for seed in SEEDS]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


MEASURES = {
    "searched ensemble": "teacher_top1",
    "calibrated student": "calibrated_top1",
    "trained student": "quantized_top1",
    "agreement with the ensemble, calibrated": "calibrated_agreement",
    "agreement with the ensemble, trained": "teacher_agreement",
}


def table() -> None:
    """Print one row for each network or ensemble, and the weights that were found."""
    print("| percent of the held-out third | seed 0 | seed 1 | seed 2 | mean |")
    print("| --- | --- | --- | --- | --- |")
    clients = [record(seed) for seed in SEEDS]
    _row("best client", [max(c["top1"] for c in each["clients"]) for each in clients])
    own = [record(seed)["clients"][largest(seed)] for seed in SEEDS]
    _row("client with most images", [each["top1"] for each in own])
    _row("equal ensemble", [each["equal_top1"] for each in clients])
    for variant in VARIANTS:
        for name, key in MEASURES.items():
            values = [each[key] for each in _results(variant)]
            # A new student was nothing before, and one that is not trained is nothing after.
            trained = not variant.startswith("untrained")
            if None not in values and (trained or key == "teacher_top1"):
                _row(f"{variant}: {name}", values)
    for variant in VARIANTS:
        for seed, each in zip(SEEDS, _results(variant), strict=False):
            weights = {t["model"]: round(t["weight"], 2) for t in each["teachers"].values()}
            print(f"{variant}, seed {seed}: {weights}")


def files() -> list[Path]:
    """Return the weights of all clients, which are trained where they are missing."""
    for seed in SEEDS:
        of_seed = [WEIGHTS / weights_file(seed, client) for client in range(CLIENTS)]
        if not all(file.exists() for file in of_seed):
            make_clients(seed, WEIGHTS, record_file(seed))
    return [WEIGHTS / weights_file(seed, c) for seed in SEEDS for c in range(CLIENTS)]


if __name__ == "__main__":
    command(__doc__, HERE, runs, files, table=table)
