"""Total variation against a plain reference, and its goal."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.terms.total_variation import REFERENCE, TotalVariation, total_variation
from tests.transformers import images, teacher


def seen_of(inputs: torch.Tensor) -> Seen:
    return Seen(Batch(inputs), Trace(inputs, {}), None, Progress("synthesis", 1, 1))


def test_it_is_the_sum_of_four_norms_over_the_whole_batch() -> None:
    x = images(3)
    squares = dict.fromkeys(((0, 1), (1, 0), (1, 1), (1, -1)), 0.0)
    for dy, dx in squares:
        for n in range(3):
            for i in range(8):
                for j in range(8):
                    if 0 <= i + dy < 8 and 0 <= j + dx < 8:
                        squares[dy, dx] += float(x[n, 0, i + dy, j + dx] - x[n, 0, i, j]) ** 2
    norms = [math.sqrt(value) for value in squares.values()]
    assert float(total_variation(x)) == pytest.approx(sum(norms), rel=1e-5)
    expected = norms[0] + norms[1] + 0.5 * (norms[2] + norms[3])
    assert float(total_variation(x, 0.5)) == pytest.approx(expected, rel=1e-5)
    assert total_variation(torch.ones(2, 3, 4, 4)) == 0


def test_the_goal_is_drawn_once_and_scaled_to_the_batch() -> None:
    network = teacher()
    term = TotalVariation(lowest=2500, highest=3000)
    term.bind(network, network)
    assert 2500 <= float(term.goal) <= 3000
    flat = torch.zeros(4, 1, 8, 8)
    goal = float(term.goal) * math.sqrt(flat.numel() / REFERENCE)
    assert float(term(seen_of(flat))) == pytest.approx(goal)
    assert "goal" in term.state_dict()
    plain = TotalVariation()
    plain.bind(network, network)
    assert float(plain(seen_of(images()))) == pytest.approx(float(total_variation(images())))
    with pytest.raises(ConfigurationError, match="highest"):
        TotalVariation(lowest=3, highest=2)


def test_signals_are_refused() -> None:
    """Which have no rows: their channels would be taken for some."""
    network = teacher()
    signals = SimpleNamespace(pretrained=replace(network.pretrained, input_shape=(2, 64)))
    with pytest.raises(ModelError, match=r"total_variation .* inputs of shape \(2, 64\)"):
        TotalVariation().bind(signals, signals)  # type: ignore[arg-type]
