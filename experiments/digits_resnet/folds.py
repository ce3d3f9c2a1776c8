"""Networks and labeled images to develop a recipe on, without the third that results use.

The 1,198 digits that the bundled teacher was trained on are split into three folds. For each a
network like the bundled one is trained on the other two, and the fold becomes evaluation data.
A setting of a recipe may be chosen by its accuracy there; the held-out third stays unseen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from experiments.digits_resnet.train import (
    count_correct,
    describe,
    normalized_digits,
    parse,
    train,
)
from hast_lightning.data.evaluation import DIGITS_WHITE, digits
from hast_lightning.models.resnet import CifarResNet

FOLDS = 3


def write_images(path: Path, chosen: np.ndarray) -> None:
    """The chosen training digits as ``data=npz`` reads them: 255 is white."""
    images, labels = digits(held_out=False)
    pixels = np.round(images[chosen].astype(np.float64) * 255 / DIGITS_WHITE)
    np.savez(path, x=pixels.astype(np.uint8), y=labels[chosen])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the networks of the folds; write ``<fold>.safetensors`` and ``<fold>.npz``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    chosen_options = parser.parse_args(arguments)
    folder = chosen_options.folder
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = normalized_digits(held_out=False)
    for fold in range(FOLDS):
        options = parse(["--seed", str(fold), "--width", str(chosen_options.width)])
        chosen = torch.arange(len(labels)) % FOLDS == fold
        torch.manual_seed(options.seed)
        network = CifarResNet(options.depth, 10, in_channels=1, width=options.width)
        train(network, images[~chosen], labels[~chosen], options)
        correct = count_correct(network, images[chosen], labels[chosen])
        metadata = describe(options, correct, int(chosen.sum()))
        metadata["held_out"] = f"fold {fold} of the training digits"
        weights = safetensors.torch.save(network.state_dict(), metadata)
        (folder / f"{fold}.safetensors").write_bytes(weights)
        write_images(folder / f"{fold}.npz", chosen.numpy())
        print(f"fold {fold}: {correct}/{int(chosen.sum())}")


if __name__ == "__main__":
    main()
