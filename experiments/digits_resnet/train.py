"""Train the bundled digits teacher on two thirds of scikit-learn's handwritten digits.

The third that evaluation uses is scored once, after the last epoch, and chooses nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.data.evaluation import DIGITS_WHITE, digits
from hast_lightning.models.resnet import CifarResNet

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "src/hast_lightning/models/weights/digits_resnet.safetensors"
BLACK = -1.0
"""A black pixel after normalization with mean 0.5 and standard deviation 0.5."""


def normalized_digits(*, held_out: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [-1, 1] and labels (N,)."""
    images, labels = digits(held_out=held_out)
    pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / DIGITS_WHITE
    return (pixels - 0.5) / 0.5, torch.from_numpy(labels)


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image (N, 1, H, W) by -1, 0 or 1 pixel in both directions, black entering."""
    count, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1), value=BLACK)
    top, left = torch.randint(3, (2, count, 1), generator=generator)
    rows = (top + torch.arange(height))[:, None, :, None]
    columns = (left + torch.arange(width))[:, None, None, :]
    sample = torch.arange(count)[:, None, None, None]
    return padded[sample, 0, rows, columns]


def train(network: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace) -> None:
    """SGD with Nesterov momentum, the learning rate falling to zero along a cosine."""
    generator = torch.Generator().manual_seed(options.seed)
    # Whole batches only: a BatchNorm over a remainder of few images would be noisy.
    batches = len(labels) // options.batch_size
    optimizer = torch.optim.SGD(
        network.parameters(), options.lr, 0.9, weight_decay=options.weight_decay, nesterov=True
    )
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * batches)
    network.train()
    for _ in range(options.epochs):
        order = torch.randperm(len(labels), generator=generator)
        for batch in order[: batches * options.batch_size].view(batches, options.batch_size):
            loss = F.cross_entropy(network(shift(images[batch], generator)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    network.eval()


@torch.no_grad()
def count_correct(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    """How many images (N, 1, H, W) the network gives their label."""
    return int((network(images).argmax(dim=1) == labels).sum())


def describe(options: argparse.Namespace, correct: int, images: int) -> dict[str, str]:
    """The metadata of the file: the network, how it was trained and what it scored."""
    return {
        "format": "pt",
        "architecture": "cifar_resnet",
        "depth": str(options.depth),
        "width": str(options.width),
        "in_channels": "1",
        "num_classes": "10",
        "mean": "0.5",
        "std": "0.5",
        "training": (
            f"scikit-learn digits with index % 3 != 0; {options.epochs} epochs, batch size "
            f"{options.batch_size}, SGD with Nesterov momentum 0.9, lr {options.lr} with cosine "
            f"decay, weight decay {options.weight_decay}, shifts of up to 1 pixel; last epoch"
        ),
        "seed": str(options.seed),
        "torch": torch.__version__,
        "held_out": "scikit-learn digits with index % 3 == 0",
        "held_out_images": str(images),
        "held_out_correct": str(correct),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=8, help="6n + 2 layers")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=BUNDLED, help="a .safetensors file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score, save."""
    options = parse(arguments)
    torch.manual_seed(options.seed)
    network = CifarResNet(options.depth, 10, in_channels=1, width=options.width)
    train(network, *normalized_digits(held_out=False), options)
    images, labels = normalized_digits(held_out=True)
    correct = count_correct(network, images, labels)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    metadata = describe(options, correct, len(labels))
    options.output.write_bytes(safetensors.torch.save(network.state_dict(), metadata))
    print(f"held-out top-1: {correct}/{len(labels)} = {100 * correct / len(labels):.2f} %")
    print(f"{options.output.name}: {options.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
