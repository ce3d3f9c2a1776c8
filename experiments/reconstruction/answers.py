"""How sure MobileNetV1 x0.25 is of made images, and of photographs.

    IMAGENET=<folder> python -m experiments.reconstruction.answers samples.safetensors ...

prints for each file of images, and for the photographs that stand for a user's own, the mean of the
largest probability, of the entropy (nats) and of the deviation of an image's logits.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.mobilenetv1 import build
from experiments.own_pictures import split_photographs

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def teacher(folder: Path) -> nn.Module:
    """Return the network with its weights."""
    file = folder / "mobilenetv1_x0.25.pth.tar"
    state = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
    network = build()
    network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    return network.eval()


def photographs(folder: Path) -> Tensor:
    """Return the user's own photographs, normalized, (N, 3, 224, 224)."""
    own, _ = split_photographs(folder / "val")
    with np.load(own) as data:
        pixels = torch.from_numpy(data["x"]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return (pixels - mean) / std


@torch.no_grad()
def describe(network: nn.Module, images: Tensor) -> str:
    """Return the three means."""
    logits = torch.cat([network(batch) for batch in images.split(BATCH)])
    p = logits.softmax(dim=1)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(dim=1).mean()
    largest, spread = p.amax(dim=1).mean(), logits.std(dim=1).mean()
    return f"largest {largest:.2f}, entropy {entropy:.2f}, logits {spread:.2f}"


if __name__ == "__main__":
    given = Path(os.environ["IMAGENET"])
    chosen = teacher(given)
    for name in sys.argv[1:]:
        print(f"{name}: {describe(chosen, load_file(name)['images'].float())}")
    print(f"photographs: {describe(chosen, photographs(given))}")
