"""Tiny vision transformers with random weights, and what is made of them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, fx, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.tracing import trace
from hast_lightning.models.preparation import prepare
from hast_lightning.models.teacher import FrozenTeacher

SIZE, PATCH, WIDTH, HEADS, CLASSES = 8, 2, 16, 2, 5
SHAPE = (1, SIZE, SIZE)
TOKENS = (SIZE // PATCH) ** 2 + 1
WORDS = (
    "model=own",
    "model.factory=tests.transformers:TinyViT",
    f"model.input_size={SIZE}",
    "model.mean=[0.5]",
    "model.std=[0.25]",
)
"""Of the command line."""


class TinyViT(nn.Module):
    """Two encoder layers of ``torch.nn`` over 16 patches and a class token."""

    def __init__(self, norm_first: bool = True, batch_first: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patch = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
            self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
            self.places = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
            layer = nn.TransformerEncoderLayer(
                WIDTH, HEADS, 32, norm_first=norm_first, batch_first=batch_first
            )
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
            for each in self.modules():
                if isinstance(each, nn.LayerNorm):
                    nn.init.uniform_(each.weight, 0.1, 3)
                    nn.init.normal_(each.bias)
        self.batch_first = batch_first

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(patches.shape[0], -1, -1), patches), 1) + self.places
        if self.batch_first:
            tokens = self.encoder(tokens)
        else:
            tokens = self.encoder(tokens.transpose(0, 1)).transpose(0, 1)
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits


@functools.cache
def network(norm_first: bool = True) -> nn.Module:
    """The graph that a run works on; do not change it."""
    prepared, _ = prepare(TinyViT(norm_first).eval(), SHAPE, "tiny")
    return prepared


def pretrained(norm_first: bool = True) -> PretrainedNetwork:
    return PretrainedNetwork(network(norm_first), "tiny", SHAPE, CLASSES, (0.5,), (0.25,), "")


def teacher(norm_first: bool = True) -> FrozenTeacher:
    return FrozenTeacher(pretrained(norm_first))


def graph(norm_first: bool = True) -> fx.GraphModule:
    return trace(network(norm_first))


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
