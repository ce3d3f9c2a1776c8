"""Which classes are shown, and what of them."""

from __future__ import annotations

import torch

from hast_lightning.report.confusion import MOST_CLASSES, SHOWN, confusion_table
from hast_lightning.report.content import Disagreement


def names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


def test_few_classes_are_all_shown() -> None:
    counts = torch.tensor([[5, 0, 2], [1, 6, 0], [0, 0, 0]])
    table = confusion_table(counts, names(3))
    assert table.counts == ((5, 0, 2), (1, 6, 0), (0, 0, 0))
    assert table.classes == tuple(names(3)) and not table.shortened
    assert table.images == 14
    assert table.worst == (
        Disagreement("class 0", "class 2", 2),
        Disagreement("class 1", "class 0", 1),
    )


def test_of_many_classes_the_most_confused_are_shown_and_no_image_is_lost() -> None:
    total = MOST_CLASSES + 30
    counts = torch.eye(total, dtype=torch.int64) * 10
    counts[40, 3] = 7
    counts[17, 40] = 4
    table = confusion_table(counts, names(total))
    assert table.shortened and len(table.classes) == SHOWN
    assert {"class 3", "class 17", "class 40"} <= set(table.classes)
    assert all(len(row) == SHOWN + 1 for row in table.counts)
    row = table.counts[table.classes.index("class 40")]
    assert sum(row) == 17 and row[table.classes.index("class 3")] == 7
    assert table.worst[0] == Disagreement("class 40", "class 3", 7)
    assert table.images == 10 * total + 11


def test_an_image_that_went_to_a_class_not_shown_is_under_other() -> None:
    total = MOST_CLASSES + 20
    counts = torch.zeros(total, total, dtype=torch.int64)
    counts[0, 1:] = 1  # one class loses an image to every other one
    counts[0, 1] = 5
    table = confusion_table(counts, names(total))
    row = table.counts[table.classes.index("class 0")]
    assert row[-1] == total - 1 - (SHOWN - 1) and sum(row) == total - 2 + 5


def test_full_agreement_has_no_worst() -> None:
    assert confusion_table(torch.eye(4, dtype=torch.int64), names(4)).worst == ()
