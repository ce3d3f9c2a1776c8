"""A tiny network that takes features of any scale, and where they come from."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models import zoo

SHAPE = (1, 11, 5)
MEAN = (-15.0, 1.0, 0.0, -0.5, 2.0)
STD = (24.0, 4.0, 2.0, 1.0, 0.5)
CLASSES = 3
WORDS = (
    "model=own",
    "model.factory=tests.features:network",
    "model.input_size=11x5",
    "model.modality=features",
)
"""Of the command line."""


def features(count: int, seed: int = 0) -> Tensor:
    """Features (count, 1, 11, 5) that move slowly, whose coefficients differ in mean and spread."""
    values = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    smooth = (values + values.roll(1, dims=2) + values.roll(2, dims=2)) / 3**0.5
    return smooth * torch.tensor(STD) + torch.tensor(MEAN)


def network() -> nn.Module:
    """A network of two convolutions, whose BatchNorms have met such features."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(1, 24, (3, 5), padding=(1, 0)),
            nn.BatchNorm2d(24, momentum=None),
            nn.ReLU(),
            nn.Conv2d(24, 24, (3, 1), padding=(1, 0)),
            nn.BatchNorm2d(24, momentum=None),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, CLASSES),
        )
        with torch.no_grad():
            # A trained network listens to all coefficients, however small.
            layers[0].weight.div_(torch.tensor(STD))
            for seed in range(4):
                layers(features(256, seed))
    return layers.eval()


@functools.cache
def loaded() -> PretrainedNetwork:
    """The same as a run loads it."""
    return zoo.load(
        ModelConfig(
            provider="own",
            name="tiny",
            factory="tests.features:network",
            input_size="11x5",
            modality="features",
        )
    )
