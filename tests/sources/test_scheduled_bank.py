"""The bank with a schedule: rates, moves, valid pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.sources.scheduled_bank import ScheduledBank
from tests.transformers import pretrained


def bank(**settings: object) -> ScheduledBank:
    usual = {"size": 4, "batch_size": 4, "iterations": 20}
    made = ScheduledBank(**{**usual, **settings})  # type: ignore[arg-type]
    torch.manual_seed(0)
    made.build(Site(pretrained(), key="sources.bank"))
    return made


def test_two_rounds_of_warm_up_and_cosine() -> None:
    source = bank(lr=0.2)
    rates = [source.rate(i) for i in range(20)]
    assert rates[:10] == rates[10:]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.2])
    cosine = [0.1 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates[2:10] == pytest.approx(cosine)
    assert bank(rounds=1, warmup=0.0, last=0.1, lr=1.0).rate(0) == 1


def test_the_optimizer_follows_and_pixels_stay_valid() -> None:
    source = bank(lr=50.0)
    optimizers = source.optimizers()
    rates = []
    for _ in range(20):
        rates.append(optimizers["adam"].param_groups[0]["lr"])
        optimizers["adam"].zero_grad()
        (-source.propose().inputs.square().sum()).backward()
        optimizers["adam"].step()
        finished = source.improved(0.0, optimizers)
        # Behind the last step there is fresh noise.
        assert source.active.abs().max() <= 2.001 or source.iteration == 0
    assert rates == pytest.approx([source.rate(i) for i in range(20)])
    assert finished is not None
    # Black and white of mean 0.5 and deviation 0.25.
    assert finished.inputs.abs().max() <= 2.001
    assert optimizers["adam"].param_groups[0]["lr"] == pytest.approx(source.rate(0))


def test_images_move_as_one_and_nothing_is_lost() -> None:
    source = bank(rolls=[0.5], flip=0.5)
    own = source.active.detach()
    moved = [source.propose().inputs.detach() for _ in range(20)]
    assert any(not torch.equal(each, own) for each in moved)
    for each in moved:
        torch.testing.assert_close(each.flatten(1).sort().values, own.flatten(1).sort().values)
    still = bank(rolls=[], flip=0.0)
    assert torch.equal(still.propose().inputs, still.active)


def test_a_network_of_signals_is_refused() -> None:
    network = PretrainedNetwork(nn.Identity(), "wave", (2, 32), 4, (0.5,) * 2, (0.5,) * 2, "")  # type: ignore[arg-type]
    for clamp in (True, False):
        source = ScheduledBank(size=4, batch_size=4, clamp=clamp)
        with pytest.raises(ConfigurationError, match="bank=scheduled_bank makes images") as caught:
            source.build(Site(network, key="sources.bank"))
        assert "\n" not in str(caught.value)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="rounds"):
        ScheduledBank(rounds=0)
    with pytest.raises(ConfigurationError, match="rolls"):
        ScheduledBank(rolls=[2.0])
