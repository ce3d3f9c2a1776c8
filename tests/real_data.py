"""Where the development data lie, for tests that need them; these skip where a file is absent.

The folder is the environment variable HAST_DATA, or ``shared/data`` beside the checkout.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def data_folder() -> Path:
    """The folder of the development data, which need not exist."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("HAST_DATA") or beside)


def cifar10_folder() -> Path:
    """The folder of ResNet-20's weights and the first 1,017 CIFAR-10 test images."""
    folder = data_folder() / "cifar10"
    for name in ("resnet20-12fca82f.th", "cifar10_test_first1017.npz"):
        _skip_if_absent(folder / name)
    return folder


def imagenet_folder() -> Path:
    """The folder of a small MobileNetV1 and of one validation photograph a class."""
    folder = data_folder() / "imagenet"
    _skip_if_absent(folder / "mobilenetv1_x0.25.pth.tar")
    _skip_if_absent(folder / "val" / "n01440764" / "n01440764.JPEG")
    return folder


def keyword_folder() -> Path:
    """The folder of the weights of a DS-CNN and of the features of 1,000 recordings."""
    folder = data_folder() / "keyword_spotting"
    for name in ("dscnn.safetensors", "kws01.npz"):
        _skip_if_absent(folder / name)
    return folder


def diffusion_folder() -> Path:
    """The folder of the weights of a small DDPM and of 2,000 digits."""
    folder = data_folder() / "diffusion"
    for name in ("ddpm_mnist.safetensors", "mnist_test_first2000.npz"):
        _skip_if_absent(folder / name)
    return folder


def reference_file() -> Path:
    """The values of the published arithmetic on ResNet-20, an .npz file."""
    path = data_folder() / "reference" / "hast_resnet20_w3a3.npz"
    _skip_if_absent(path)
    return path


def _skip_if_absent(path: Path) -> None:
    if not path.is_file():
        pytest.skip(f"development data absent: {path} (set HAST_DATA to their folder)")
