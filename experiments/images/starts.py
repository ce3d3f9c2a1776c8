"""Print how far pictures miss the BatchNorm statistics of MobileNetV1 x0.25 before synthesis.

``IMAGENET=<folder> python -m experiments.images.starts``; the folder holds
``mobilenetv1_x0.25.pth.tar``. Errors are those of the term ``bns``, ``relative=true``, on 64
pictures of each kind.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from experiments.mobilenetv1 import build
from hast_lightning.core.network import PICTURES, PretrainedNetwork
from hast_lightning.sources.starts import STARTS, started
from hast_lightning.terms.bns import (
    BatchNormStatistics,
    batch_norm_statistics_loss,
    channel_statistics,
)

COUNT = 64

if __name__ == "__main__":
    file = Path(os.environ["IMAGENET"]) / "mobilenetv1_x0.25.pth.tar"
    saved = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    network = build().eval()
    network.load_state_dict({name.removeprefix("module."): v for name, v in saved.items()})
    found: list[BatchNormStatistics] = []
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(
                lambda norm, inputs: found.append(
                    BatchNormStatistics(
                        *channel_statistics(inputs[0]), norm.running_mean, norm.running_var
                    )
                )
            )
    shape = (3, 224, 224)
    pretrained = PretrainedNetwork(network, "mobilenetv1", shape, 1000, (0.5,) * 3, (0.5,) * 3, "")
    assert pretrained.modality == PICTURES
    for start in STARTS:
        torch.manual_seed(0)
        found.clear()
        with torch.no_grad():
            network(started(pretrained, torch.randn(COUNT, *shape), start))
        print(f"{start}: {float(batch_norm_statistics_loss(found, relative=True)):.3f}")
