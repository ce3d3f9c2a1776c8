"""Run every method on ResNet-20 for CIFAR-10 with one budget, and print the table.

``CIFAR=<folder> python experiments/methods_cifar10_resnet20/study.py run`` goes through the runs
that have no result yet, one after the other, and goes on where one was stopped; ``... table``
prints what they say. ``$CIFAR`` holds the two files that README.md names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SCRATCH = HERE.parents[1] / "scratch" / HERE.name
FILES = ("resnet20-12fca82f.th", "cifar10_test_first1017.npz")
COMMON = (
    *("model=resnet20_cifar10", "quantizer=minmax", "schedule=quick", "seed=0"),
    *("model.checkpoint=resnet20-12fca82f.th", "data=npz"),
    *("data.path=cifar10_test_first1017.npz", "trainer.channels_last=true"),
    *("trainer.threads=1", "export=none", "report=false", "callbacks.progress=false"),
)
BANK = "schedule.student_batch=64"
"""HAST's batch for every method that trains on a bank, so that all see equally many images."""
METHODS: dict[str, tuple[str, ...]] = {
    "synq": ("method=synq", BANK),
    "intraq": ("method=intraq", BANK),
    "ait_bank": ("method=ait_bank", BANK),
    "adadfq": ("method=adadfq",),
    "adasg": ("method=adasg",),
}
BITS = (3, 4)


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of every run."""
    for method, words in METHODS.items():
        for bits in BITS:
            yield f"{method}_w{bits}a{bits}_seed0", [*COMMON, *words, f"quantizer.bits={bits}"]


def run_all() -> None:
    """Go through the runs that have no result yet.

    The images of a bank do not depend on the bits: the second run of a method takes the first's.
    """
    from hast_lightning.cli.main import main

    SCRATCH.mkdir(parents=True, exist_ok=True)
    os.chdir(SCRATCH)
    for file in FILES:
        if not Path(file).exists():
            Path(file).symlink_to(Path(os.environ["CIFAR"]) / file)
    for name, words in runs():
        if (RESULTS / name / "result.json").exists():
            continue
        print(name, flush=True)
        sys.argv = ["hast-lightning", *_words_of_start(name, words)]
        # A run that is refused leaves no result, and a line.
        with contextlib.suppress(SystemExit):
            main()
        if Path(name, "result.json").exists():
            (RESULTS / name).mkdir(parents=True, exist_ok=True)
            for file in ("result.json", "config.yaml"):
                shutil.copy(Path(name, file), RESULTS / name / file)


def _words_of_start(name: str, words: list[str]) -> list[str]:
    """Return the words that start a run, or go on with it where it was stopped."""
    if list(Path(name).glob("last*.ckpt")):
        return [f"resume={name}"]
    shutil.rmtree(name, ignore_errors=True)
    method = name.split("_w", maxsplit=1)[0]
    made = sorted(Path().glob(f"{method}_w*/samples.safetensors"))
    loaded = [f"sources.bank.load={made[0]}"] if made else []
    return [*words, *loaded, f"hydra.run.dir={name}"]


def table() -> None:
    """Print one row a run."""
    print("| method | W/A | calibrated | top-1, last step | agreement |")
    for name, _ in runs():
        path = RESULTS / name / "result.json"
        if path.exists():
            r = json.loads(path.read_text())
            figures = ("calibrated_top1", "quantized_top1", "teacher_agreement")
            cells = [f"{r[figure]:.2f}" for figure in figures]
            bits = f"{r['weight_bits']}/{r['activation_bits']}"
            print("|", " | ".join([str(r["method"]), bits, *cells]), "|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    {"run": run_all, "table": table}[parser.parse_args().what]()
