"""Small networks that put out several tensors: of a detector, of a segmentation, in a tuple."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.segmentation.fcn import FCN, FCNHead

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models.pretrained import describe
from tests.export.families import as_if_trained

SHAPE = (3, 16, 16)
NO_LABELS = "stages.synthesis.terms.hard_cross_entropy.enabled=false"


def body() -> nn.Sequential:
    """Two convolutions with BatchNorms, whose outputs have 8 and 16 channels."""
    torch.manual_seed(0)
    layers = OrderedDict(
        stem=nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        norm=nn.BatchNorm2d(8),
        act=nn.ReLU(),
        deep=nn.Conv2d(8, 16, 3, 2, 1, bias=False),
        deep_norm=nn.BatchNorm2d(16),
        deep_act=nn.ReLU(),
    )
    return nn.Sequential(layers)


def backbone() -> nn.Module:
    """torchvision's feature pyramid on that body: ``{"fine": maps, "coarse": maps, "pool": maps}``.

    In this order, which is not that of the alphabet.
    """
    levels = {"act": "fine", "deep_act": "coarse"}
    return as_if_trained(BackboneWithFPN(body(), levels, [8, 16], 6))


def segmentation() -> nn.Module:
    """torchvision's fully convolutional head and an auxiliary one: ``{"out": ..., "aux": ...}``."""
    layers = IntermediateLayerGetter(body(), {"act": "aux", "deep_act": "out"})
    return as_if_trained(FCN(layers, FCNHead(16, 4), FCNHead(8, 4)))


class BoxesAndScores(nn.Module):
    """A tuple of boxes (N, 4, H, W) and of a list: scores (N, 3), and a number for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Any:
        features = self.body(images)
        pooled = features.mean((2, 3))
        return self.boxes(features), [self.scores(pooled), pooled.mean(1)]


def boxes_and_scores() -> nn.Module:
    """The tuple, with weights as of a trained network."""
    return as_if_trained(BoxesAndScores())


def described(network: nn.Module) -> PretrainedNetwork:
    """The network as a run has it."""
    config = ModelConfig(provider="given", name="several")
    return describe(network, config, SHAPE, (0.0,) * 3, (1.0,) * 3)
