"""Classes of the teacher that the student confuses with others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hast_lightning.report.content import ConfusionTable, Disagreement

MOST_CLASSES = 12
"""Up to so many are all shown; of more, the ones with most disagreements."""
SHOWN, WORST = 10, 8


def confusion_table(counts: Tensor, names: Sequence[str]) -> ConfusionTable:
    """Return the table of all classes where they are few, else of those that differ most.

    Args:
        counts: (classes, classes) int64, images by the teacher's class (rows) and the student's.
        names: One a class.
    """
    off = counts.clone().fill_diagonal_(0)
    total = len(counts)
    if total <= MOST_CLASSES:
        chosen = torch.arange(total)
    else:
        # Where two classes differ as much, the one with more images; then the first.
        weight = (off.sum(1) + off.sum(0)) * (counts.sum() + 1) + counts.sum(1)
        order = torch.sort(weight, descending=True, stable=True).indices
        chosen = order[:SHOWN].sort().values
    rows = counts[chosen][:, chosen]
    if total > MOST_CLASSES:
        others = counts[chosen].sum(1) - rows.sum(1)
        rows = torch.cat([rows, others.unsqueeze(1)], dim=1)
    return ConfusionTable(
        tuple(names[index] for index in chosen.tolist()),
        tuple(map(tuple, rows.tolist())),
        int(counts.sum()),
        total,
        _worst(off, names),
    )


def _worst(off: Tensor, names: Sequence[str]) -> tuple[Disagreement, ...]:
    flat = off.flatten()
    order = torch.sort(flat, descending=True, stable=True).indices[:WORST]
    pairs = [(*divmod(int(index), len(off)), int(flat[index])) for index in order]
    return tuple(Disagreement(names[t], names[s], images) for t, s, images in pairs if images)
