"""Calls of ``quantize`` that end in a second, on the bundled network."""

from __future__ import annotations

from typing import Any

from torch import nn

from hast_lightning.config import ModelConfig
from hast_lightning.models import zoo
from tests.command_line import TINY

SHORT = [*TINY, "trainer.threads=1"]
INPUT: dict[str, Any] = {"input_shape": (1, 8, 8), "mean": [0.5], "std": [0.5]}


def digits_network() -> nn.Module:
    """The bundled network, with its weights."""
    return zoo.load(ModelConfig(provider="digits", name="digits_resnet")).network
