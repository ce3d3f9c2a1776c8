"""Selectors of bits, without labels, on the answers that students gave; and what they reach."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ANSWERS = Path(__file__).resolve().parent / "answers"
PAIRS = ((2, 6), (3, 4), (3, 6))
"""Bits of activations for easy and for hard images."""
SHARES = (0.25, 0.5, 0.75)
"""Of images that are to be hard, in the mean of the synthetic ones."""
SELECTORS = {"narrow student": "", "teacher": "teacher"}
"""Whose doubt says what is hard; empty: that of the narrower student of the pair."""
HEAD = (
    *("hard, found", "mean bits", "narrow first", "top-1", "agreement", "random", "deviation"),
    "oracle (uses labels)",
)
"""Of what is selected, in the order of :class:`Selected`."""
DRAWS = 1000
"""Random selections, whose mean and deviation stand for all."""


class Answers(NamedTuple):
    """What one network says.

    Attributes:
        right: Whether each test image has its class, (N,) float.
        agrees: Whether it has the teacher's, (N,) float.
        doubts: One less the margin between the two likeliest classes, (N,).
        synthetic: The same of synthetic images that calibrated nothing, (M,).
    """

    right: Tensor
    agrees: Tensor
    doubts: Tensor
    synthetic: Tensor


class Selected(NamedTuple):
    """What a selection reaches; accuracies in percent.

    Attributes:
        share: Of the test images that had the wider student.
        bits: Mean bits of the activations that answers were made with.
        cost: The same, where every image goes through the narrow student first.
        top1: Share that has its class.
        agreement: Share that has the teacher's.
        random: Top-1 where as many images have the wider student, drawn at random.
        deviation: Of that, over the draws.
        oracle: The most that as many images can have. It uses labels.
    """

    share: float
    bits: float
    cost: float
    top1: float
    agreement: float
    random: float
    deviation: float
    oracle: float


def read(path: Path) -> dict[str, Answers]:
    """Return the answers of a seed, by network: the teacher's, and of students by their bits."""
    return {
        name: Answers(
            *(torch.tensor([float(flag) for flag in said[key]]) for key in ("right", "agrees")),
            *(torch.tensor(said[key]) for key in ("doubts", "synthetic_doubts")),
        )
        for name, said in json.loads(path.read_text(encoding="utf-8")).items()
    }


def is_hard(selector: Answers, share: float) -> Tensor:
    """Return which test images (N,) are doubted more than all but a share of synthetic ones."""
    return selector.doubts > selector.synthetic.quantile(1 - share)


def select(said: dict[str, Answers], pair: tuple[int, int], by: str, share: float) -> Selected:
    """Return what a selector reaches on the test images."""
    narrow, wide = (said[str(bits)] for bits in pair)
    hard = is_hard(said[by] if by else narrow, share)
    count, gain = int(hard.sum()), wide.right - narrow.right
    torch.manual_seed(0)
    drawn = torch.stack([gain[torch.randperm(len(gain))[:count]].sum() for _ in range(DRAWS)])
    drawn = 100 * (narrow.right.sum() + drawn) / len(gain)
    best = narrow.right.sum() + gain.sort(descending=True).values[:count].sum()
    found = count / len(gain)
    return Selected(
        100 * found,
        pair[0] + found * (pair[1] - pair[0]),
        pair[0] + found * pair[1],
        100 * float(torch.where(hard, wide.right, narrow.right).mean()),
        100 * float(torch.where(hard, wide.agrees, narrow.agrees).mean()),
        float(drawn.mean()),
        float(drawn.std()),
        100 * float(best) / len(gain),
    )


def narrowest(said: dict[str, Answers]) -> tuple[float, float]:
    """Return mean bits and top-1 of an oracle: the fewest bits that are right, else the fewest."""
    widths = sorted(int(name) for name in said if name != "teacher")
    right = torch.stack([said[str(bits)].right for bits in widths])
    bits = torch.tensor(widths, dtype=torch.float32)[right.argmax(dim=0)]
    return float(bits.mean()), 100 * float(right.amax(dim=0).mean())


def uniform(each: Answers) -> tuple[float, ...]:
    """Return top-1, agreement, and the median doubt of test and of synthetic images."""
    shares = (100 * float(flags.mean()) for flags in (each.right, each.agrees))
    return (*shares, *(float(values.median()) for values in (each.doubts, each.synthetic)))


def row(*cells: object) -> None:
    """Print a row of a table."""
    print("|", " | ".join(str(cell) for cell in cells), "|")


def means(of_seeds: Iterable[Sequence[float]]) -> list[str]:
    """Return the mean of each column over the seeds."""
    return [f"{statistics.mean(column):.2f}" for column in zip(*of_seeds, strict=True)]


def print_tables() -> None:
    """Print uniform widths, the oracle of all of them, and selections; means over the seeds."""
    seeds = [read(path) for path in sorted(ANSWERS.glob("*.json"))]
    row("activations", "top-1", "agreement", "doubt, test", "doubt, synthetic")
    row(*["---"] * 5)
    for name in seeds[0]:
        row(name, *means(uniform(said[name]) for said in seeds))
    print("\nmean bits and top-1 of the fewest bits that are right (uses labels):", end=" ")
    print(*means(narrowest(said) for said in seeds), end="\n\n")
    row("bits", "doubt of", "hard, planned", *HEAD)
    row(*["---"] * (3 + len(HEAD)))
    for pair, (title, by), share in product(PAIRS, SELECTORS.items(), SHARES):
        found = means(select(said, pair, by, share) for said in seeds)
        row("{} or {}".format(*pair), title, f"{100 * share:.0f}", *found)
