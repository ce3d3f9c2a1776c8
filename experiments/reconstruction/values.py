"""What MobileNetV1 x0.25 puts out behind each ReLU, for made images and for photographs.

    IMAGENET=<folder> python -m experiments.reconstruction.values samples.safetensors ...

prints for each layer, and for the photographs that stand for a user's own and each file of images,
the root of the mean square, quantiles, how much the means of single images deviate in units of a
channel's deviation, and the strongest channel of an image as a multiple of the mean.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.reconstruction.answers import photographs, teacher

COUNT = 96
QUANTILES = (0.9, 0.99, 0.999)
SAMPLED = 200_000


def described(values: Tensor) -> list[float]:
    """Return the figures of what a layer puts out, (N, C, H, W)."""
    flat = values.flatten()
    some = flat[torch.randint(len(flat), (SAMPLED,))]
    quantiles = torch.quantile(some, torch.tensor(QUANTILES)).tolist()
    of_images = values.mean(dim=(2, 3))
    deviation = values.std(dim=(0, 2, 3)).clamp_min(1e-3)
    apart = float((of_images.std(dim=0) / deviation).mean())
    peak = float((of_images.amax(dim=1) / of_images.mean(dim=1)).mean())
    return [float(flat.square().mean().sqrt()), *quantiles, apart, peak]


@torch.no_grad()
def by_layer(network: nn.Module, images: Tensor) -> dict[str, list[float]]:
    """Return the figures behind each ReLU, by its name."""
    found: dict[str, list[float]] = {}
    layers = {name: each for name, each in network.named_modules() if isinstance(each, nn.ReLU)}
    hooks = [
        layer.register_forward_hook(
            lambda _, __, output, name=name: found.update({name: described(output)})
        )
        for name, layer in layers.items()
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return found


def table(kinds: Mapping[str, dict[str, list[float]]]) -> None:
    """Print the figures of all kinds of images, layer by layer."""
    print("| layer | images | mean square, root | 90 % | 99 % | 99.9 % | images apart | peak |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for layer in next(iter(kinds.values())):
        for kind, found in kinds.items():
            print("|", " | ".join([layer, kind, *(f"{v:.2f}" for v in found[layer])]), "|")


if __name__ == "__main__":
    given = Path(os.environ["IMAGENET"])
    torch.manual_seed(0)
    chosen = teacher(given)
    images = {"photographs": photographs(given)}
    images |= {name: load_file(name)["images"].float() for name in sys.argv[1:]}
    table({name: by_layer(chosen, each[:COUNT]) for name, each in images.items()})
