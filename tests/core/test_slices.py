"""Slices make up the whole, in order, and what is computed in them is what is computed at once."""

from __future__ import annotations

import pytest
import torch

from hast_lightning.core.slices import CACHED, slices_of, taken


@pytest.mark.parametrize("images", [1, 2, 7, 300])
@pytest.mark.parametrize("each", [3, CACHED // 3, 2 * CACHED])
def test_slices_make_up_the_whole_in_order(images: int, each: int) -> None:
    values = torch.arange(images, dtype=torch.uint8).view(-1, 1).expand(images, each)
    parts = [values[index] for index in slices_of(values)]
    assert torch.equal(torch.cat(parts), values)
    assert all(part.numel() <= max(CACHED, each) for part in parts)


def test_few_values_and_scalars_are_not_cut() -> None:
    assert slices_of(torch.zeros(CACHED)) == [...]
    assert slices_of(torch.tensor(1.0)) == [...]
    assert len(slices_of(torch.zeros(CACHED + 1))) > 1


def test_values_that_broadcast_are_taken_whole() -> None:
    index = slice(2, 4)
    assert torch.equal(taken(torch.arange(6), index), torch.tensor([2, 3]))
    assert torch.equal(taken(torch.tensor([5]), index), torch.tensor([5]))
    assert torch.equal(taken(torch.tensor(5), index), torch.tensor(5))
