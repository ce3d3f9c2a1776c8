"""Small networks for scikit-learn's handwritten digits, without residual blocks.

Training one writes its weights: ``python experiments/do_no_harm/networks.py plain plain.pt``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.digits_resnet.train import count_correct, normalized_digits, train

CLASSES = 10


def _block(channels: int, width: int, *, groups: int = 1, kernel: int = 3) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]


def _classifier(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


def plain() -> nn.Module:
    """Return two convolutions, pooling and a linear layer: 5 thousand parameters."""
    return nn.Sequential(
        *_block(1, 16), nn.MaxPool2d(2), *_block(16, 32), nn.MaxPool2d(2), *_classifier(32)
    )


def vgg() -> nn.Module:
    """Return six convolutions in three resolutions: 90 thousand parameters."""
    return nn.Sequential(
        *(*_block(1, 24), *_block(24, 24), nn.MaxPool2d(2)),
        *(*_block(24, 48), *_block(48, 48), nn.MaxPool2d(2)),
        *(*_block(48, 64), *_block(64, 64)),
        *_classifier(64),
    )


def separable() -> nn.Module:
    """Return a convolution and four depthwise-separable ones: 8 thousand parameters."""
    layers = _block(1, 24)
    for channels, width in ((24, 24), (24, 48), (48, 48), (48, 64)):
        layers += [*_block(channels, channels, groups=channels), *_block(channels, width, kernel=1)]
        if width == 48 and channels == 24:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *_classifier(64))


NETWORKS = {"plain": plain, "vgg": vgg, "separable": separable}


def main() -> None:
    """Train one of the networks on two thirds of the digits and save its weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    options.seed, options.batch_size, options.epochs = 0, 64, 60
    options.lr, options.weight_decay = 0.1, 5e-4
    torch.manual_seed(options.seed)
    network = NETWORKS[options.network]()
    train(network, *normalized_digits(held_out=False), options)
    images, labels = normalized_digits(held_out=True)
    correct = count_correct(network, images, labels)
    print(f"{options.network}: {correct} of {len(labels)} held-out digits are right")
    torch.save(network.state_dict(), options.file)


if __name__ == "__main__":
    main()
