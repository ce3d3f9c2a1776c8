"""Print how far pictures miss the BatchNorm statistics of MobileNetV1 x0.25 before synthesis.

``IMAGENET=<folder> python -m experiments.images.starts``; the folder holds
``mobilenetv1_x0.25.pth.tar``. Errors are those of the term ``bns``, ``relative=true``, on 64
pictures of each kind.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from experiments.smooth_images.layers import COUNT, MEAN, STD, watched
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.sources.starts import STARTS, started
from hast_lightning.terms.bns import batch_norm_statistics_loss

SHAPE = (3, 224, 224)

if __name__ == "__main__":
    network, found = watched(Path(os.environ["IMAGENET"]) / "mobilenetv1_x0.25.pth.tar")
    pretrained = PretrainedNetwork(
        network, "mobilenetv1_x0.25", SHAPE, 1000, tuple(MEAN), tuple(STD), checksum=""
    )
    for start in STARTS:
        torch.manual_seed(0)
        found.clear()
        with torch.no_grad():
            network(started(pretrained, torch.randn(COUNT, *SHAPE), start))
        print(f"{start}: {float(batch_norm_statistics_loss(found, relative=True)):.3f}")
