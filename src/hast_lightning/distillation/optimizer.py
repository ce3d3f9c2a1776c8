"""What moves the student's parameters."""

from __future__ import annotations

from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

from hast_lightning.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """The student's optimizer: SGD with Nesterov momentum, Adam or AdamW.

    Args:
        config: Learning rate and options.
        groups: Groups of parameters; what one of them sets is its own.
    """
    if config.name == "sgd":
        return SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    optimizer = Adam if config.name == "adam" else AdamW
    return optimizer(groups, lr=config.lr, weight_decay=config.weight_decay)
