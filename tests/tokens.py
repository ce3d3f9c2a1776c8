"""A tiny network of tokens, which follows a rule, and where it comes from."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from experiments.language_model.llama import Llama, small
from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models import zoo

LENGTH, VOCABULARY = 16, 32
WORDS = (
    "model=own",
    "model.factory=tests.tokens:network",
    "model.input_size=16",
    "model.modality=tokens",
)
"""Of the command line."""
QUICK = (
    "method=self_calibration_style",
    "sources.text.size=8",
    "stages.calibration.steps=2",
    "stages.calibration.batch_size=4",
    "safeguard.images=4",
)


def network() -> Llama:
    """A network of two blocks, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = small()
        with torch.no_grad():
            # Answers that differ enough to be told apart.
            for block in made.blocks:
                block.w2.weight.mul_(4)  # type: ignore[union-attr]
            made.tok.weight.mul_(2)
    return made.eval()


class Plain(nn.Module):
    """The same network without a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        found: Tensor = self.inner(tokens)
        return found


def config(factory: str = "tests.tokens:network", **more: object) -> ModelConfig:
    """The ``model`` group of the tiny network."""
    options = {"name": "tiny", "input_size": LENGTH, "modality": "tokens", **more}
    return ModelConfig(provider="own", factory=factory, **options)  # type: ignore[arg-type]


@functools.cache
def loaded(factory: str = "tests.tokens:network") -> PretrainedNetwork:
    """The tiny network as a run loads it."""
    return zoo.load(config(factory))


def texts(count: int, seed: int = 0) -> Tensor:
    """Random tokens (count, 16)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
