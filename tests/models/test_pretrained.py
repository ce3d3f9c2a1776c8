from __future__ import annotations

from functools import partial

import pytest
from torch import nn

from hast_lightning.config import ModelConfig
from hast_lightning.models.providers.given import accept
from tests.refusals import message_of

SIGNAL = (3, 16)


def signals() -> nn.Module:
    layers = (nn.Conv1d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 5)).eval()


def test_signals_are_described() -> None:
    found = accept(signals(), ModelConfig(provider="given", name="mine"), SIGNAL)
    assert (found.input_shape, found.num_classes) == (SIGNAL, 5)


@pytest.mark.parametrize("modality", ["features", "diffusion"])
def test_signals_of_another_modality_are_refused(modality: str) -> None:
    schedule = {"noise_schedule": "linear"} if modality == "diffusion" else {}
    config = ModelConfig(provider="given", name="mine", modality=modality, **schedule)
    message = message_of(partial(accept, signals(), config, SIGNAL))
    assert f"model.modality={modality} is for inputs (channels, height, width)" in message
    assert "takes (3, 16)" in message
