"""Text that a network of tokens writes itself, one token after the other.

Source: self-calibration (Williams, Chrysostomou and Aletras, NAACL 2025) has calibration text
sampled from the network that is compressed. The schedule is ours as far as its numbers go: that
the temperature moves linearly over the first tokens is remembered of the paper, not verified.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hast_lightning.core.network import Decoder, PretrainedNetwork

AT_ONCE = 128
"""Texts that are written together, if nobody says otherwise."""


def temperatures(count: int, initial: float, final: float, steps: int) -> list[float]:
    """Return ``initial + min(i / steps, 1) * (final - initial)`` of tokens ``i`` = 0, 1, ...

    Args:
        count: Tokens.
        initial: Temperature of the first.
        final: Temperature from token ``steps`` on.
        steps: 0 has the last one everywhere.
    """
    shares = [min(i / steps, 1.0) if steps else 1.0 for i in range(count)]
    return [initial + share * (final - initial) for share in shares]


@torch.no_grad()
def write_text(
    network: PretrainedNetwork,
    count: int,
    heat: Sequence[float],
    start: int | Tensor,
    generator: torch.Generator,
    at_once: int = AT_ONCE,
) -> Tensor:
    """Return texts (count, length) that the network wrote, int64, on the device of ``generator``.

    With a cache each token is computed once. A network without one computes its whole input anew
    for every token, which takes as many times as long as a text has tokens.

    Args:
        network: Of tokens.
        count: Texts.
        heat: Temperatures of the tokens behind the first, which logits are divided by.
        start: The first token of every text, or of each, (count,).
        generator: Of the random numbers, which decide the texts together with both counts.
        at_once: Texts that are written together.
    """
    length, device = network.length, generator.device
    texts = torch.zeros(count, length, dtype=torch.int64, device=device)
    texts[:, 0] = start
    cached = network.decoder is not None
    whole = _on(network.network if network.decoder is None else network.decoder, device)
    for some in torch.split(texts, at_once):
        following: Callable[[Tensor, int], Tensor]
        following = _Cached(whole) if cached else partial(_anew, whole)
        for place in range(1, length):
            logits = following(some, place).float() / heat[place - 1]
            shares = logits.softmax(dim=1)
            some[:, place] = torch.multinomial(shares, 1, generator=generator).squeeze(1)
    return texts


def _anew(whole: nn.Module, texts: Tensor, place: int) -> Tensor:
    """Return the logits (N, classes) of token ``place`` of texts (N, length)."""
    # What is written later does not matter: the network was found to be causal.
    logits: Tensor = whole(texts)[:, :, place - 1]
    return logits


class _Cached:
    """Gives what :func:`_anew` does, with the network's own cache."""

    def __init__(self, decoder: nn.Module) -> None:
        assert isinstance(decoder, Decoder)
        self._decoder: Decoder = decoder
        self._cache: Any = None

    def __call__(self, texts: Tensor, place: int) -> Tensor:
        logits, self._cache = self._decoder.decode(texts[:, place - 1 : place], self._cache)
        return logits[:, -1]


def _on(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network, or a copy of it where it is on another device."""
    first = next(network.parameters())
    return network if first.device == device else copy.deepcopy(network).to(device)
