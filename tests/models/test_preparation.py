"""Networks as they are found in the wild, in layers that can be quantized."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hast_lightning.graph.tracing import batch_norm_inputs, trace
from hast_lightning.models.preparation import prepare
from hast_lightning.models.resnet import CifarResNet
from tests.export.families import as_if_trained, noise

SHAPE = (3, 16, 16)


def test_batch_norms_that_several_devices_trained_are_plain_ones() -> None:
    network = as_if_trained(CifarResNet(8, 10, width=4))
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network)).eval()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in synchronized.modules())
    prepared, classes = prepare(synchronized, SHAPE, "synchronized")
    images = noise(4, *SHAPE)
    with torch.no_grad():
        assert torch.equal(prepared(images), network(images))
    assert classes == 10
    assert len(batch_norm_inputs(trace(prepared))) == len(batch_norm_inputs(trace(network)))
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in synchronized.modules())


def test_such_batch_norms_behind_a_linear_layer_take_vectors() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.Linear(6, 5),
    ).eval()
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network)).eval()
    prepared, _ = prepare(synchronized, SHAPE, "head")
    images = noise(4, *SHAPE)
    with torch.no_grad():
        assert torch.equal(prepared(images), network(images))
