"""Print what each BatchNorm of MobileNetV1 x0.25 adds to the statistics loss of 64 photographs.

``IMAGENET=<folder> python -m experiments.smooth_images.layers``; the folder holds
``mobilenetv1_x0.25.pth.tar`` and ``val``, of which every second class is taken from the second on.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from experiments.mobilenetv1 import build
from hast_lightning.terms.bns import (
    BatchNormStatistics,
    batch_norm_statistics_loss,
    channel_statistics,
)

COUNT = 64
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def photograph(path: Path) -> Tensor:
    """Return the normalized middle of a photograph, (3, 224, 224)."""
    image = F.resize(decode_image(str(path), ImageReadMode.RGB), 256, antialias=True)
    return F.normalize(F.center_crop(image, 224).float() / 255, MEAN, STD)


def watched(file: Path) -> tuple[nn.Module, list[BatchNormStatistics]]:
    """Return MobileNetV1 x0.25, and the statistics of its BatchNorms in the order of its passes."""
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
    return network, found


if __name__ == "__main__":
    folder = Path(os.environ["IMAGENET"])
    network, found = watched(folder / "mobilenetv1_x0.25.pth.tar")
    classes = sorted((folder / "val").iterdir())[1 : 2 * COUNT : 2]
    with torch.no_grad():
        network(torch.stack([photograph(next(each.iterdir())) for each in classes]))
    for relative in (False, True):
        each = [float(batch_norm_statistics_loss([one], relative=relative)) for one in found]
        kind = "relative" if relative else "plain"
        print(f"{kind}: {sum(each) / len(each):.4f}, share of the first {each[0] / sum(each):.3f}")
