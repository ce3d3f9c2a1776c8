"""What moves the student's parameters."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hast_lightning.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter]) -> Optimizer:
    """The student's optimizer: SGD with Nesterov momentum, Adam or AdamW."""
    if config.name == "sgd":
        return SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    optimizer = Adam if config.name == "adam" else AdamW
    return optimizer(parameters, lr=config.lr, weight_decay=config.weight_decay)
