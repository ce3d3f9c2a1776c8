"""Mean and deviation of images against the formula by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.models.zoo import load
from hast_lightning.terms.image_statistics import ImageStatistics
from tests import features
from tests.composition import composed


def loss(network: PretrainedNetwork, inputs: Tensor) -> float:
    term, teacher = ImageStatistics(), FrozenTeacher(network)
    term.bind(teacher, teacher)
    nothing = Trace(torch.zeros(len(inputs), 1), {})
    return float(term(Seen(Batch(inputs), nothing, None, Progress("synthesis", 1, 1))))


def test_images_are_drawn_to_mean_0_and_deviation_1() -> None:
    images = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]], [[[0.0, 0.0], [2.0, 2.0]]]])
    deviations = [math.sqrt(20 / 3), math.sqrt(4 / 3)]
    expected = (16 + (deviations[0] - 1) ** 2 + 1 + (deviations[1] - 1) ** 2) / 2
    assert abs(loss(load(composed("model=digits").model), images) - expected) < 1e-5


def test_features_are_drawn_to_what_their_network_takes_in() -> None:
    network = features.loaded()
    standard = torch.randn(64, *network.input_shape, generator=torch.Generator().manual_seed(0))
    assert loss(network, network.inputs_of(standard)) < 0.1
    assert loss(network, standard) > 0.5
