"""Train small networks on parts of scikit-learn's handwritten digits that differ in classes.

Each client sees its own share of the 1,198 training digits and nothing else; how much of a class a
client has is drawn from a Dirichlet distribution (0.3). The third that evaluation uses is scored
once, after the last epoch, and chooses nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from experiments.digits_resnet.train import count_correct, normalized_digits, train
from experiments.do_no_harm.networks import CLASSES, plain
from hast_lightning.records.versions import git_commit, versions

CLIENTS, ALPHA, LEAST = 5, 0.3, 64
EPOCHS, BATCH_SIZE = 60, 32


def split(labels: Tensor, seed: int) -> list[np.ndarray]:
    """Return the numbers of each client's images: every image has one client.

    Drawn again until each client has ``LEAST`` images.
    """
    generator = np.random.default_rng(seed)
    while True:
        parts: list[list[int]] = [[] for _ in range(CLIENTS)]
        for label in range(CLASSES):
            own = generator.permutation(np.flatnonzero(labels.numpy() == label))
            shares = generator.dirichlet([ALPHA] * CLIENTS)
            ends = np.round(np.cumsum(shares)[:-1] * len(own)).astype(int)
            for part, some in zip(parts, np.split(own, ends), strict=True):
                part.extend(some.tolist())
        if min(map(len, parts)) >= LEAST:
            return [np.sort(np.array(part)) for part in parts]


def weights_file(seed: int, client: int) -> str:
    """Return the name of a client's weights."""
    return f"digits_client{client}_seed{seed}.pt"


def make_clients(seed: int, weights: Path, record: Path) -> None:
    """Train the clients of a seed; write their weights, and what they saw and score."""
    images, labels = normalized_digits(held_out=False)
    unseen, truth = normalized_digits(held_out=True)
    options = argparse.Namespace(
        seed=seed, batch_size=BATCH_SIZE, epochs=EPOCHS, lr=0.1, weight_decay=5e-4
    )
    logits, clients = [], []
    weights.mkdir(parents=True, exist_ok=True)
    for client, chosen in enumerate(split(labels, seed)):
        torch.manual_seed(100 * seed + client)
        network: nn.Module = plain()
        train(network, images[chosen], labels[chosen], options)
        torch.save(network.state_dict(), weights / weights_file(seed, client))
        counts = torch.bincount(labels[chosen], minlength=CLASSES).tolist()
        top1 = 100 * count_correct(network, unseen, truth) / len(truth)
        clients.append({"images": len(chosen), "of_class": counts, "top1": round(top1, 2)})
        with torch.no_grad():
            logits.append(network(unseen))
    together = torch.stack(logits).mean(dim=0).argmax(dim=1)
    equal = round(100 * float((together == truth).float().mean()), 2)
    made = {"git_commit": git_commit(), "versions": versions()}
    command = "python -m experiments.ensembles.study run"
    content = {"seed": seed, "clients": clients, "equal_top1": equal, "command": command, **made}
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
