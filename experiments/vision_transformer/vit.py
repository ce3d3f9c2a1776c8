"""A small vision transformer for CIFAR-10 (smmk47/CIFAR10-Classification), without its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES, SIZE, PATCH = 10, 32, 4
WIDTH, HEADS, HIDDEN, DEPTH = 128, 8, 256, 6


class PatchEmbedding(nn.Module):
    """Pictures to patches, 4x4 pixels each."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, 32, 32) to (N, 64, 128)."""
        patches: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return patches


class Blocks(nn.Module):
    """Six encoder layers of ``torch.nn``: post-norm, ReLU, fused projections."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True) for _ in range(DEPTH)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, 65, 128) to the same shape."""
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


class ViT(nn.Module):
    """Patches and a class token through six layers, and a head on the class token."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2 + 1, WIDTH))
        self.transformer = Blocks()
        self.mlp_head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures (N, 3, 32, 32) to logits (N, classes)."""
        patches = self.patch_embed(images)
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        logits: Tensor = self.mlp_head(self.transformer(tokens + self.pos_embed)[:, 0])
        return logits
