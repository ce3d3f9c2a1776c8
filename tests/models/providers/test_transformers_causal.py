"""Causal language models of transformers, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hast_lightning.config import ModelConfig
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.models import zoo
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.quantization.settings import QuantizerConfig
from tests.composition import composed
from tests.small_runs import build_module, fit, small
from tests.tokens import QUICK

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = {"model_type": "llama", "num_key_value_heads": 2, **SIZES}
KINDS = {
    "llama": LLAMA,
    "tied": {**LLAMA, "tie_word_embeddings": True},
    "gpt_neox": {"model_type": "gpt_neox", **SIZES},
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def config(path: Path, **more: Any) -> ModelConfig:
    options = {"name": "tiny", "input_size": 8, "modality": "tokens", **more}
    return ModelConfig(provider="transformers", config_file=str(path), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_answers_as_the_library_does(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    written(tmp_path, KINDS[kind])
    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(settings).eval()
    network.save_pretrained(tmp_path / "saved")
    weights = str(tmp_path / "saved" / "model.safetensors")
    if kind == "gpt_neox":  # whose files have other names than its network
        save_file({name: value.clone() for name, value in network.state_dict().items()}, weights)
    found = zoo.load(config(tmp_path / "saved" / "config.json", checkpoint=weights))
    tokens = torch.randint(40, (3, 8))
    with torch.no_grad():
        torch.testing.assert_close(
            found.network(tokens).transpose(1, 2), network(tokens).logits, atol=1e-5, rtol=1e-4
        )
    student = convert(found.network, QuantizerConfig(weight_bits=4, activation_bits=None))
    # Seven layers a block (four of gpt_neox), and the output.
    assert len(quantized_layers(student)) == (9 if kind == "gpt_neox" else 15)


def test_a_method_takes_steps(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    words = ("model=transformers", f"model.config_file={written(tmp_path, LLAMA)}")
    module = build_module(small(*words, "model.input_size=8", *QUICK, "quantizer.bits=4"))
    fit(module)
    assert module.iteration == module.agenda.iterations
    assert module.teacher.pretrained.decoder is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ({}, "has no model_type"),
        ({"model_type": "nonesuch"}, "makes no causal language model of it"),
        ({"model_type": "vit"}, "makes no causal language model of it"),
    ],
)
def test_a_file_that_describes_no_such_network_is_refused(
    content: Any, message: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=message) as caught:
        zoo.load(config(written(tmp_path, content)))
    assert "\n" not in str(caught.value)


WINDOWS = {
    "mistral": {"sliding_window": 8},
    "qwen2": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0},
    "gemma2": {"sliding_window": 8, "head_dim": 4},
    "gemma3_text": {"sliding_window": 8, "head_dim": 4},
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_attention_with_a_window_is_refused_where_texts_are_longer(
    kind: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    content = {"model_type": kind, "num_key_value_heads": 2, **SIZES, **WINDOWS[kind]}
    path = written(tmp_path, content)
    torch.manual_seed(0)
    assert zoo.load(config(path)).input_shape == (8,)
    message = r"^model.input_size=24: the network tiny does not look at all tokens before"
    with pytest.raises(ModelError, match=message) as caught:
        zoo.load(config(path, input_size=24))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"^model.input_size=6: "):
        zoo.load(config(written(tmp_path, content | {"sliding_window": 4}), input_size=6))


def test_layers_of_gpt_2_are_no_layers_of_torch_and_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    path = written(tmp_path, {"model_type": "gpt2", **sizes, "bos_token_id": 1, "eos_token_id": 2})
    network = zoo.load(config(path)).network
    with pytest.raises(ModelError, match=r"calls addmm .* whose weights belong to no layer"):
        convert(network, QuantizerConfig(weight_bits=4, activation_bits=None))


def test_keys_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    words = ("model=transformers", "method=self_calibration_style", "quantizer.bits=4")
    with pytest.raises(ConfigurationError, match=r"config_file=None with model.provider=transf"):
        composed(*words)
    with pytest.raises(ConfigurationError, match=r"model.input_size is not set"):
        composed(*words, "model.config_file=config.json")
    with pytest.raises(ConfigurationError, match="whose networks take tokens"):
        composed(*words, "model.config_file=config.json", "model.modality=pictures")
    with pytest.raises(ConfigurationError, match=r"config_file=x with model.provider=digits"):
        composed("model=digits", "model.config_file=x")
