"""Noise: what a source does by itself, without a line of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hast_lightning.core.leaves import leaves
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.sources.noise import Noise


def noise(start: str = "white", shape: tuple[int, ...] = (1, 4, 6)) -> Noise:
    network = PretrainedNetwork(nn.Identity(), "any", shape, 3, (0.5,), (0.5,), "")
    source = Noise(start=start)
    source.build(Site(network))
    return source


def test_samples_are_standard_normal_with_uniform_labels() -> None:
    torch.manual_seed(0)
    inputs, labels, weights = noise().sample(3000)
    assert inputs.shape == (3000, 1, 4, 6) and weights is None
    assert abs(float(inputs.mean())) < 0.02 and abs(float(inputs.std()) - 1) < 0.02
    assert torch.bincount(labels).min() > 900


def test_held_out_previewed_and_collected_samples_leave_no_trace() -> None:
    source, stream = noise(), torch.get_rng_state()
    held_out = source.held_out(5)
    assert torch.equal(torch.get_rng_state(), stream)
    torch.manual_seed(7)
    for again in (source.held_out(5), source.preview(5)):
        assert torch.equal(again.inputs, held_out.inputs)
    collected = source.collect(5)
    assert torch.equal(source.collect(5).inputs, collected.inputs)
    # What is trained on is nothing that is held out.
    assert not torch.equal(collected.inputs, held_out.inputs)
    assert not torch.equal(source.sample(5).inputs, held_out.inputs)


def test_it_leaves_nothing_in_a_checkpoint() -> None:
    assert not noise().state_dict()


@pytest.mark.parametrize("start", ["leaves", "textured"])
def test_pictures_are_drawn_anew_for_every_batch_where_that_is_asked_for(start: str) -> None:
    source = noise(start=start)
    first, second = source.sample(3).inputs, source.sample(3).inputs
    assert first.shape == (3, 1, 4, 6) and not torch.equal(first, second)
    torch.manual_seed(0)
    torch.randn(3, 1, 4, 6)
    expected = leaves(3, (1, 4, 6), textured=start == "textured")
    torch.manual_seed(0)
    assert torch.equal(source.sample(3).inputs, expected)
    with pytest.raises(ConfigurationError, match=r"start=.pink. is not one of"):
        noise(start="pink")


def test_signals_have_no_leaves() -> None:
    torch.manual_seed(0)
    expected = torch.randn(5, 2, 24)
    torch.manual_seed(0)
    assert torch.equal(noise("leaves", (2, 24)).sample(5).inputs, expected)
