"""From a causal network of tokens to the graph that is quantized, and what is known of it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import TOKENS, Decoder, PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.graph.attention import write_out_functions, write_out_modules
from hast_lightning.graph.functional_layers import functions_to_layers
from hast_lightning.graph.heads import put_classes_second
from hast_lightning.graph.outputs import keep_only_tensor
from hast_lightning.graph.sized_tracing import trace_sized
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.steadiness import answer_of, differ

TEXTS = 2
DECODED = 8
"""Tokens that a cache is compared on."""


def describe_text(network: nn.Module, config: ModelConfig) -> PretrainedNetwork:
    """Prepare a network of tokens (N, length) that puts out logits (N, length, vocabulary).

    It is traced for texts of ``model.input_size`` tokens. Its graph puts out (N, vocabulary,
    length), so that all that compares maps of logits compares these.

    Args:
        network: With its weights; left as it is. A method ``decode``
            (:class:`~hast_lightning.core.network.Decoder`) is used for its own text.
        config: The ``model`` group.

    Raises:
        ModelError: it takes no such tokens, puts out no such logits, looks ahead, cannot be traced,
            or its ``decode`` gives other logits.
    """
    network, length = network.eval().float(), config.length
    vocabulary = _answers(network, torch.zeros(TEXTS, length, dtype=torch.int64), config).shape[2]
    if config.num_classes not in (None, vocabulary):
        raise ModelError(
            f"model.num_classes={config.num_classes}: the network {config.name} knows {vocabulary} "
            "tokens"
        )
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(vocabulary, (TEXTS, length), generator=generator)
    expected = _answers(network, texts, config)
    _require_causal(network, texts, expected, config)
    _require_same_decoded(network, texts, expected, config)
    # A copy, whose attention is written out.
    graph_module = trace_sized(write_out_modules(network), (length,))
    keep_only_tensor(graph_module, config.name)
    write_out_functions(graph_module, texts)
    functions_to_layers(graph_module, texts)
    if differ(expected, graph_module(texts)):
        raise ModelError(
            f"the network {config.name} gives other logits when torch.fx has traced it: its Python "
            "code depends on more than its tokens"
        )
    put_classes_second(graph_module)
    return PretrainedNetwork(
        network=graph_module.eval(),
        name=config.name,
        # Parts of other modalities have three axes, and refuse tokens before they look at them.
        input_shape=cast("tuple[int, int, int]", (length,)),
        num_classes=vocabulary,
        mean=(0.0,),
        std=(1.0,),
        checksum=checksum(network),
        taps=None if config.taps is None else tuple(config.taps),
        modality=TOKENS,
        decoder=network.requires_grad_(False) if isinstance(network, Decoder) else None,
    )


@torch.no_grad()
def _answers(network: nn.Module, texts: Tensor, config: ModelConfig) -> Tensor:
    """Return what a network puts out for tokens, (N, length, vocabulary)."""
    shape = "x".join(map(str, texts.shape))
    output = answer_of(network, texts, config.name, f"tokens of {shape}")
    fits = isinstance(output, Tensor) and output.dim() == 3 and output.shape[:2] == texts.shape
    if not fits or not output.is_floating_point() or output.shape[2] < 2:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"the network {config.name} returns {given} for tokens of {shape}; expected logits "
            "(texts, tokens, vocabulary)"
        )
    if not bool(output.isfinite().all()):
        raise ModelError(f"the network {config.name} puts out NaN or infinite logits")
    found: Tensor = output
    return found


def _require_causal(
    network: nn.Module, texts: Tensor, expected: Tensor, config: ModelConfig
) -> None:
    """Refuse a network whose answer depends on later tokens, on chance or on other texts."""
    changed = texts.clone()
    changed[:, -1] = (changed[:, -1] + 1) % expected.shape[2]
    if differ(expected[:, :-1], _answers(network, changed, config)[:, :-1]):
        raise ModelError(
            f"the network {config.name} looks ahead: another last token changes the logits before "
            "it, so they are not those of the next token"
        )
    if differ(expected[:1], _answers(network, texts[:1], config)):
        raise ModelError(
            f"the network {config.name} answers a text in another way when it is asked again, or "
            "when other texts are in the batch"
        )


@torch.no_grad()
def _require_same_decoded(
    network: nn.Module, texts: Tensor, expected: Tensor, config: ModelConfig
) -> None:
    """Refuse a cache that does not give the logits of the whole text."""
    if not isinstance(network, Decoder):
        return
    cache, found = None, []
    for place in range(min(DECODED, texts.shape[1])):
        logits, cache = network.decode(texts[:, place : place + 1], cache)
        found.append(logits)
    together = torch.cat(found, dim=1)
    if differ(expected[:, : together.shape[1]], together):
        raise ModelError(
            f"the network {config.name} gives other logits by decode, token by token, than for the "
            "whole text: correct its cache, or leave decode out"
        )
