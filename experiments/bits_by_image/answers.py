"""Keep what the students answer to each test image, and how much they doubt, in ``answers/``.

``python -m experiments.bits_by_image.answers``, behind the runs of the study. Test
images and labels are not kept, only which answers were right. The synthetic images that thresholds
come from are those of the other seed, on which nothing of a seed was calibrated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from experiments.bits_by_image.study import HERE, SEEDS, WIDTHS, WORDS
from experiments.resumable import SCRATCH
from hast_lightning import QuantizedModel
from hast_lightning.api.composition import composed
from hast_lightning.data.evaluation import load_evaluation_data
from hast_lightning.models.zoo import load

Answer = Callable[[Tensor], Tensor]
AT_ONCE = 128


def doubts(logits: Tensor) -> Tensor:
    """Return one less the probability of the likeliest class plus that of the next, (N,).

    Near 0 where nothing else is thought of, 1 where two classes are equally likely; no label is
    asked for. In float64: most probabilities are too near 1 for float32.
    """
    first, second = logits.double().softmax(dim=1).topk(2, dim=1).values.unbind(dim=1)
    return 1 - first + second


def bits(flags: Tensor) -> str:
    """Return true and false (N,) as ones and zeros."""
    return "".join("01"[int(flag)] for flag in flags)


def kept(values: Tensor) -> list[float]:
    """Return numbers (N,) with three significant digits."""
    return [float(f"{value:.3g}") for value in values.tolist()]


@torch.no_grad()
def logits_of(network: Answer, images: Tensor) -> Tensor:
    """Return the logits of images (N, C, H, W), some at once."""
    return torch.cat([network(part) for part in images.split(AT_ONCE)])


def held_out(seed: int) -> Path:
    """Return the file of the other seed's images, (M, 3, 32, 32), which calibrated nothing here."""
    (other,) = (each for each in SEEDS if each != seed)
    return Path(f"bank_seed{other}", "samples.safetensors")


def answers(seed: int) -> dict[str, Any]:
    """Return the answers and doubts of the teacher and of a seed's students, by name."""
    config = composed([*WORDS, "quantizer.activation_bits=4"])
    teacher = load(config.model)
    pairs = load_evaluation_data(config.data, teacher)
    assert pairs is not None
    images, labels = (torch.cat(each) for each in zip(*pairs, strict=True))
    made = load_file(held_out(seed))["images"].float()
    networks: dict[str, Answer] = {"teacher": teacher.network}
    for width in WIDTHS:
        networks[str(width)] = QuantizedModel.load(f"w4a{width}_seed{seed}").network
    truth = logits_of(teacher.network, images).argmax(dim=1)
    found = {}
    for name, network in networks.items():
        logits = logits_of(network, images)
        answer = logits.argmax(dim=1)
        found[name] = {
            "right": bits(answer == labels),
            "agrees": bits(answer == truth),
            "doubts": kept(doubts(logits)),
            "synthetic_doubts": kept(doubts(logits_of(network, made))),
        }
    return found


def is_complete(seed: int) -> bool:
    """Return whether all students of a seed were made, and its synthetic test images."""
    students = (Path(f"w4a{width}_seed{seed}", "result.json") for width in WIDTHS)
    return all(path.exists() for path in (*students, held_out(seed)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    (HERE / "answers").mkdir(exist_ok=True)
    # Where the runs have their files.
    os.chdir(SCRATCH / HERE.name)
    for each in filter(is_complete, SEEDS):
        text = json.dumps(answers(each), separators=(",", ":"))
        # A line for each network.
        (HERE / "answers" / f"seed{each}.json").write_text(text.replace('},"', '},\n"') + "\n")
