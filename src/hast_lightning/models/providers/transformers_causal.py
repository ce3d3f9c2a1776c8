"""Causal language models of Hugging Face transformers, from a file of their configuration."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError, first_line
from hast_lightning.models.checkpoints import load_weights
from hast_lightning.models.providers.refusals import missing_package
from hast_lightning.models.steadiness import answer_of, differ
from hast_lightning.models.text_network import TEXTS, describe_text


def load(config: ModelConfig) -> PretrainedNetwork:
    """Load the network of ``model.config_file``, with the weights of ``model.checkpoint``.

    Nothing is downloaded, and no code of a model's own is run.

    Raises:
        ModelError: transformers is not installed or knows no such network, or it or its weights
            cannot be used, or it does not look at all tokens of such a text.
    """
    network = _made(config)
    if config.checkpoint is not None:
        # What is tied to the embedding is not in files of transformers.
        tied = getattr(network.config, "tie_word_embeddings", False)
        holder: nn.Module = network.base_model if tied else network
        load_weights(holder, config.checkpoint, key=config.checkpoint_key)
    causal = CausalNetwork(network, config.length)
    _require_same_mask(network, causal, config)
    return describe_text(causal, config)


class CausalNetwork(nn.Module):
    """From tokens to logits, with a mask and positions of its own, so that torch.fx can follow it.

    Args:
        network: Of transformers, with attention written out.
        length: Tokens of a text.
    """

    mask: Tensor
    places: Tensor

    def __init__(self, network: nn.Module, length: int) -> None:
        super().__init__()
        self.network = network
        least = torch.finfo(torch.float32).min
        # Given in four dimensions, a mask is used as it is.
        self.register_buffer(
            "mask", torch.full((1, 1, length, length), least).triu(1), persistent=False
        )
        self.register_buffer("places", torch.arange(length)[None], persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (N, length, vocabulary) of whole texts (N, length)."""
        output: tuple[Tensor, ...] = self.network(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=self.places,
            use_cache=False,
            return_dict=False,
        )
        return output[0]

    def decode(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Return the logits (N, n, vocabulary) of n more tokens, and the library's own cache."""
        with warnings.catch_warnings():
            # Its later name is not in the first versions of the series.
            warnings.filterwarnings("ignore", ".*past_key_values.*", FutureWarning)
            output = self.network(input_ids=tokens, past_key_values=cache, use_cache=True)
        return output.logits, output.past_key_values


@torch.no_grad()
def _require_same_mask(network: Any, causal: CausalNetwork, config: ModelConfig) -> None:
    """Refuse a network that masks more than what comes later, as ours does."""
    shape = (TEXTS, config.length)
    what = f"tokens of {TEXTS}x{config.length}"
    zeros = torch.zeros(shape, dtype=torch.int64)
    vocabulary = answer_of(causal, zeros, config.name, what).shape[-1]
    texts = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))
    # A window is longer than what a cache is compared on: all tokens count.
    own = network(input_ids=texts, use_cache=False).logits
    if differ(own, answer_of(causal, texts, config.name, what)):
        raise ModelError(
            f"model.input_size={config.input_size}: the network {config.name} does not look at all "
            "tokens before (sliding_window), as its graph would: lower it"
        )


def _made(config: ModelConfig) -> Any:
    """Return the network that the file describes, with random weights."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise missing_package("transformers") from error
    assert config.config_file is not None
    described, maker = _read(Path(config.config_file)), _untyped(AutoModelForCausalLM)
    try:
        settings = AutoConfig.for_model(described.pop("model_type"), **described)
        made = maker.from_config(
            settings, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:  # whatever the library makes of a file
        reason = first_line(error)
        raise ModelError(
            f"model.config_file={config.config_file}: transformers makes no causal language model "
            f"of it: {reason}"
        ) from error
    return made.eval()


def _untyped(value: Any) -> Any:
    """Return what a library of types that are known in part gives, without them."""
    return value


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"model.config_file={path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"model.config_file={path} is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ModelError(
            f"model.config_file={path} has no model_type: it is config.json of a model of "
            "transformers"
        )
    # Code of a model's own stays where it is.
    return {key: value for key, value in content.items() if key != "auto_map"}
