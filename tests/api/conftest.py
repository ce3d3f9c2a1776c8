"""What the tests of the Python interface quantize, and what comes of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from hast_lightning import QuantizedModel, quantize
from hast_lightning.api import call
from hast_lightning.api.composition import composed
from hast_lightning.config import Config
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


@pytest.fixture(autouse=True, scope="module")
def _a_network_is_composed_once() -> Iterator[None]:
    """Compose once what a call says of its network alone, which most calls here have in common.

    A call composes that first, to choose the rest by it, and then everything, which stays as it is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call, "composed", _composed)
        yield


def _composed(overrides: Sequence[str]) -> Config:
    of_network = all(word.startswith(("model", "data=none")) for word in overrides)
    return copy.deepcopy(_network(tuple(overrides))) if of_network else composed(overrides)


@functools.cache
def _network(overrides: tuple[str, ...]) -> Config:
    return composed(overrides)
