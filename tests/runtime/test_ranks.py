from __future__ import annotations

import pytest
import torch
from torch import distributed, nn

from hast_lightning.api.surroundings import undisturbed_process
from hast_lightning.runtime.ranks import (
    alone,
    average_gradients,
    averaged,
    broadcast_parameters,
    gathered,
    gathered_objects,
    rank,
    rank_seed,
    world_size,
)


def test_one_process_is_the_identity() -> None:
    tensor = torch.randn(3, 2)
    assert (world_size(), rank(), rank_seed(7)) == (1, 0, 7)
    assert torch.equal(averaged(tensor), tensor)
    assert torch.equal(gathered(tensor), tensor)
    assert gathered_objects({"a": 1}) == [{"a": 1}]
    layer = nn.Linear(2, 2)
    before = layer.weight.clone()
    layer(tensor).sum().backward()
    gradient = layer.weight.grad.clone()  # type: ignore[union-attr]
    average_gradients(layer.parameters())
    broadcast_parameters(layer)
    assert torch.equal(layer.weight, before)
    assert torch.equal(layer.weight.grad, gradient)  # type: ignore[arg-type]


def test_a_run_may_be_alone_in_a_program_of_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    assert (world_size(), rank()) == (2, 1)
    with alone():
        assert (world_size(), rank()) == (1, 0)
    with undisturbed_process():
        assert gathered_objects(3) == [3]
    assert world_size() == 2
