"""Text that a network writes itself."""

from __future__ import annotations

import pytest
import torch

from hast_lightning.graph import own_text
from hast_lightning.graph.own_text import temperatures, write_text
from tests.tokens import LENGTH, VOCABULARY, loaded


def written(factory: str = "tests.tokens:network", seed: int = 0, count: int = 6) -> torch.Tensor:
    heat = temperatures(LENGTH - 1, 2.0, 0.5, 4)
    return write_text(loaded(factory), count, heat, 1, torch.Generator().manual_seed(seed))


def test_the_temperature_moves_linearly_over_the_first_tokens() -> None:
    assert temperatures(6, 2.0, 1.0, 4) == [2.0, 1.75, 1.5, 1.25, 1.0, 1.0]
    assert temperatures(3, 2.0, 1.0, 0) == [1.0, 1.0, 1.0]


def test_a_network_elsewhere_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.device] = []

    def counting(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        copied.append(device)
        return network

    monkeypatch.setattr(own_text, "_on", counting)
    for factory in ("tests.tokens:network", "tests.tokens:Plain"):
        heat = [1.0] * (LENGTH - 1)
        write_text(loaded(factory), 5, heat, 1, torch.Generator().manual_seed(0), at_once=2)
    assert copied == [torch.device("cpu")] * 2


def test_a_seed_decides_the_text_which_begins_with_the_start_token() -> None:
    first = written()
    assert first.shape == (6, LENGTH)
    assert torch.equal(first, written())
    assert not torch.equal(first, written(seed=1))
    assert (first[:, 0] == 1).all() and int(first.max()) < VOCABULARY
    assert len(first.unique(dim=0)) == 6


def test_a_cache_writes_what_the_network_writes_without_one() -> None:
    assert loaded().decoder is not None
    assert loaded("tests.tokens:Plain").decoder is None
    assert torch.equal(written(), written("tests.tokens:Plain"))


def test_tokens_are_as_frequent_as_the_network_says() -> None:
    texts = write_text(loaded(), 2000, [1.0] * (LENGTH - 1), 1, torch.Generator().manual_seed(0))
    network = loaded().network
    expected = network(torch.ones(1, LENGTH, dtype=torch.int64))[0, :, 0].softmax(0)
    found = torch.bincount(texts[:, 1], minlength=VOCABULARY) / 2000
    assert torch.allclose(found, expected, atol=0.04)
    assert expected.max() > 0.08


def test_a_low_temperature_writes_the_likeliest() -> None:
    texts = write_text(loaded(), 3, [1e-3] * (LENGTH - 1), 1, torch.Generator().manual_seed(0))
    likeliest = loaded().network(texts).argmax(1)
    assert torch.equal(texts[:, 1:], likeliest[:, :-1])


@pytest.mark.parametrize("start", [3, torch.tensor([3, 4])])
def test_texts_may_begin_differently(start: int | torch.Tensor) -> None:
    heat = [1.0] * (LENGTH - 1)
    found = write_text(loaded(), 2, heat, start, torch.Generator().manual_seed(0))
    assert found[:, 0].tolist() == ([3, 3] if isinstance(start, int) else [3, 4])
