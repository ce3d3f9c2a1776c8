"""Batches: split, soft labels, weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hast_lightning.core.batch import Batch, weighted_mean


@given(st.integers(1, 9), st.integers(1, 12))
def test_the_parts_of_a_batch_are_the_batch(count: int, size: int) -> None:
    batch = Batch(torch.arange(count), torch.arange(count) * 10, torch.arange(count) / 10)
    parts = list(batch.split(size))
    assert all(1 <= len(part.inputs) <= size for part in parts)
    assert len(parts) == -(-count // size)
    for whole, pieces in zip(batch, zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def test_what_a_batch_lacks_its_parts_lack() -> None:
    assert [part[1:] for part in Batch(torch.zeros(3)).split(2)] == [(None, None)] * 2


def test_labels_are_the_likeliest_of_soft_ones() -> None:
    soft = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    assert Batch(torch.zeros(2), soft).labels.tolist() == [1, 0]
    assert Batch(torch.zeros(2), torch.tensor([1, 1])).labels.tolist() == [1, 1]
    assert Batch(torch.zeros(2)).labels is None


def test_a_detached_batch_has_no_graph_at_all() -> None:
    grown = torch.ones(2, requires_grad=True) * 2
    detached = Batch(grown, grown.softmax(0), grown).detach()
    assert not any(tensor.requires_grad for tensor in detached)
    assert Batch(grown).detach().targets is None


def test_the_weighted_mean_counts_each_value_by_its_weight() -> None:
    values = torch.tensor([1.0, 2.0, 4.0])
    assert weighted_mean(values, None) == values.mean()
    weights = torch.tensor([1.0, 0.0, 3.0])
    assert float(weighted_mean(values, weights)) == pytest.approx(13 / 4)
    torch.testing.assert_close(weighted_mean(values, 100 * weights), weighted_mean(values, weights))
    assert weighted_mean(values, torch.zeros(3)) == 0
