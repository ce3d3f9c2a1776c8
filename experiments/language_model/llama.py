"""A Llama that torch.fx follows, with a cache for its own text (karpathy/llama2.c has its weights).

Attention is written out (product, mask, softmax, product), so that all that computes is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Shape:
    """Sizes of the network; the defaults are those of stories260K."""

    vocabulary: int = 512
    width: int = 64
    hidden: int = 172
    blocks: int = 5
    heads: int = 8
    key_heads: int = 4
    context: int = 512


@dataclass
class Cache:
    """Keys and values of the tokens so far, (N, key heads, context, head width), by block."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    length: int = 0


class Place(NamedTuple):
    """Rotations (length, head width / 2) of some positions, and what they may not see of all."""

    cos: Tensor
    sin: Tensor
    mask: Tensor


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., width)."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, place: Place) -> Tensor:
    """Turn neighboring pairs of (N, heads, length, head width) by their position (RoPE)."""
    pairs = x.unflatten(-1, (-1, 2))
    first, second = pairs.select(-1, 0), pairs.select(-1, 1)
    turned = (
        first * place.cos - second * place.sin,
        first * place.sin + second * place.cos,
    )
    return torch.stack(turned, -1).flatten(-2)


class Block(nn.Module):
    """Attention, in which neighboring heads share keys and values, and a gated layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.key_heads = shape.heads, shape.key_heads
        self.head_width = shape.width // shape.heads
        keys = self.head_width * shape.key_heads
        self.att_norm, self.ffn_norm = Norm(shape.width), Norm(shape.width)
        self.wq = nn.Linear(shape.width, shape.width, bias=False)
        self.wk = nn.Linear(shape.width, keys, bias=False)
        self.wv = nn.Linear(shape.width, keys, bias=False)
        self.wo = nn.Linear(shape.width, shape.width, bias=False)
        self.w1 = nn.Linear(shape.width, shape.hidden, bias=False)
        self.w2 = nn.Linear(shape.hidden, shape.width, bias=False)
        self.w3 = nn.Linear(shape.width, shape.hidden, bias=False)

    def project(self, x: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (N, heads, length, head width) each."""
        each = (-1, self.head_width)
        query, key, value = (
            layer(x).unflatten(-1, each).transpose(1, 2) for layer in (self.wq, self.wk, self.wv)
        )
        return rotate(query, place), rotate(key, place), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Return what each position reads of those that it may see, (N, length, width)."""
        grouped = query.unflatten(1, (self.key_heads, -1))
        scores = grouped @ key.unsqueeze(2).transpose(-2, -1) / math.sqrt(self.head_width)
        shares = torch.softmax(scores.masked_fill(mask, -math.inf), dim=-1)
        return self.wo((shares @ value.unsqueeze(2)).flatten(1, 2).transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        """Return the gated layer of (N, length, width)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """Map (N, length, width)."""
        x = x + self.attend(*self.project(self.att_norm(x), place), place.mask)
        return x + self.feed(self.ffn_norm(x))


class Llama(nn.Module):
    """From tokens (N, length) to the logits of the next ones, (N, length, vocabulary)."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.shape = shape = Shape(**sizes)
        self.tok = nn.Embedding(shape.vocabulary, shape.width)
        # It is the output layer, too, whose answers begin undecided.
        nn.init.normal_(self.tok.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.norm = Norm(shape.width)
        half = shape.width // shape.heads // 2
        frequency = 10000.0 ** (-torch.arange(half) / half)
        angle = torch.arange(shape.context)[:, None] * frequency
        order = torch.arange(shape.context)
        for name, value in (("cos", angle.cos()), ("sin", angle.sin()), ("order", order)):
            self.register_buffer(name, value, persistent=False)

    def place(self, first: int, length: int) -> Place:
        """Return what belongs to ``length`` positions from ``first`` on."""
        end = first + length
        later = self.order[first:end].unsqueeze(1) < self.order[:end]
        return Place(self.cos[first:end], self.sin[first:end], later)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, (N, length, vocabulary)."""
        place = self.place(0, tokens.shape[1])
        x = self.tok(tokens)
        for block in self.blocks:
            x = block(x, place)
        return F.linear(self.norm(x), self.tok.weight)

    def decode(self, tokens: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Return logits (N, n, vocabulary) of n more tokens, and the cache with them.

        Args:
            tokens: (N, n), which follow those of the cache.
            cache: Of the call before, changed in place; none: these are the first tokens.
        """
        cache = Cache() if cache is None else cache
        first, end = cache.length, cache.length + tokens.shape[1]
        place, x = self.place(first, tokens.shape[1]), self.tok(tokens)
        for number, block in enumerate(self.blocks):
            query, key, value = block.project(block.att_norm(x), place)
            if number == len(cache.keys):
                room = (*key.shape[:2], self.shape.context, key.shape[3])
                cache.keys.append(key.new_empty(room))
                cache.values.append(key.new_empty(room))
            keys, values = cache.keys[number], cache.values[number]
            keys[:, :, first:end], values[:, :, first:end] = key, value
            x = x + block.attend(query, keys[:, :, :end], values[:, :, :end], place.mask)
            x = x + block.feed(block.ffn_norm(x))
        cache.length = end
        return F.linear(self.norm(x), self.tok.weight), cache


def stories260k() -> Llama:
    """Return the network of stories260K, without its weights."""
    return Llama()


def small() -> Llama:
    """Return a network of a few thousand weights, for trials and tests."""
    return Llama(vocabulary=32, width=16, hidden=24, blocks=2, heads=4, key_heads=2, context=16)
