"""What the tests of the Python interface quantize, and what comes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hast_lightning import QuantizedModel, quantize
from hast_lightning.data.evaluation import digits
from tests.small_calls import INPUT, SHORT, digits_network


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return digits_network()


@pytest.fixture(scope="module")
def held_out() -> tuple[Tensor, Tensor]:
    images, labels = digits(held_out=True)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 16
    return (pixels - 0.5) / 0.5, torch.from_numpy(labels)


@pytest.fixture(scope="module")
def quantized(network: nn.Module, held_out: tuple[Tensor, Tensor]) -> QuantizedModel:
    return quantize(network, (3, 4), data=held_out, overrides=SHORT, **INPUT)
