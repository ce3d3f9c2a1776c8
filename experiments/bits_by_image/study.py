"""Bits by image: students of several widths, and a selector that gives each image one of them.

``CIFAR=<folder> python -m experiments.bits_by_image.study run`` makes the students that there are
not yet, ``python -m experiments.bits_by_image.answers`` keeps what they answer, and ``python -m
experiments.bits_by_image.study table`` prints what selectors make of the answers.
``$CIFAR`` holds the two files that README.md names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.bits_by_image.selection import print_tables
from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("resnet20-12fca82f.th", "cifar10_test_first1017.npz")
WIDTHS = (2, 3, 4, 5, 6)
SEEDS = (0, 1)
WORDS = (
    *("method=without_training", "model=resnet20_cifar10", "quantizer=mse", "schedule=quick"),
    *("schedule.images=256", "schedule.calibration_steps=50", f"model.checkpoint={FILES[0]}"),
    *("data=npz", f"data.path={FILES[1]}", "trainer.channels_last=true", "trainer.threads=1"),
    *("trainer.precision=auto", "export=packed", "report=false", "callbacks.progress=false"),
    # Students are those of the last step, whatever a judge says.
    *("safeguard.enabled=false", "quantizer.weight_bits=4"),
)


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of each run: weights of 4 bits, and one width of all activations."""
    for seed in SEEDS:
        for bits in WIDTHS:
            words = [*WORDS, f"quantizer.activation_bits={bits}", f"seed={seed}"]
            yield f"w4a{bits}_seed{seed}", words


def bank(name: str) -> tuple[str, list[str]]:
    """Return the run that makes the images of a seed, which all its widths share."""
    seed = name.rpartition("_seed")[2]
    made = ("quantizer.activation_bits=4", "order=[synthesis]", "evaluate=false", "export=none")
    return f"bank_seed{seed}", [*WORDS, *made, f"seed={seed}"]


if __name__ == "__main__":
    command(__doc__, HERE, runs, files_in("CIFAR", *FILES), images=bank, table=print_tables)
