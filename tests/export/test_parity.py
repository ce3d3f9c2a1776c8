from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hast_lightning.errors import ExportError
from hast_lightning.export.parity import Parity, compare, latencies


def test_what_agrees_is_counted_over_all_batches() -> None:
    batches = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 1.0]])]

    def exported(images: Tensor) -> Tensor:
        return images - torch.tensor([1.5, 0.0])

    # The first image is lost, which led by 1; the others lead by 1 and 2.
    parity = compare(exported, lambda images: images, batches)
    assert parity == Parity(3, 2, 1.5, lead=1.0, lost_lead=1.0)
    assert parity.agreement == 66.6667


def test_what_agrees_everywhere_has_lost_no_lead() -> None:
    batches = [torch.tensor([[1.0, 0.0, 0.5], [0.0, 4.0, 1.0]])]
    parity = compare(lambda images: 2 * images, lambda images: images, batches)
    assert parity == Parity(2, 2, 4.0, lead=0.5, lost_lead=0.0)


@pytest.mark.parametrize(
    ("images", "agreeing", "least", "enough"),
    [
        (10_000, 9_990, 99.9, True),
        (10_000, 9_989, 99.9, False),
        (2_000, 1_998, 99.9, True),
        (1_999, 1_997, 99.9, False),
        (999, 998, 99.9, True),
        (1_017, 1_016, 99.9, True),
        (1_017, 1_015, 99.9, False),
        # One of few images.
        (6, 5, 99.9, True),
        (6, 4, 99.9, False),
        (6, 5, 100, False),
        (6, 6, 100, True),
        (6, 0, 0, True),
    ],
)
def test_at_most_a_thousandth_or_one_may_differ(
    images: int, agreeing: int, least: float, enough: bool
) -> None:
    assert Parity(images, agreeing, 0.0, 0.0, 0.0).is_enough(least) is enough


def test_nan_is_no_agreement() -> None:
    with pytest.raises(ExportError, match="NaN or infinite"):
        compare(lambda images: images * float("nan"), lambda images: images, [torch.ones(1, 2)])


def test_latencies_are_taken_in_turns() -> None:
    calls = []

    def network(name: str) -> object:
        return lambda images: calls.append(name) or images

    first, second = latencies(network("a"), network("b"), torch.zeros(1))  # type: ignore[arg-type]
    assert first > 0 and second > 0
    assert calls == ["a", "b"] * (len(calls) // 2)
