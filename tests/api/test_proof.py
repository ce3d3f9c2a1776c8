"""A file of a quantized network is run beside it before it gets its name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from hast_lightning import QuantizedModel, quantize
from hast_lightning.api import quantized_model
from hast_lightning.errors import ConfigurationError, ExportError
from hast_lightning.export.parity import TOGETHER
from tests.small_calls import INPUT, SHORT, digits_network

CALLS = {"save": ".safetensors", "export_onnx": ".onnx", "export_program": ".pt2"}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_file_that_computes_something_else_is_refused_and_removed(
    quantized: QuantizedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    loaded: bool,
) -> None:
    """Also of a network that was loaded from a file, which has no images to be run on."""
    model = quantized
    if loaded:
        model = QuantizedModel.load(quantized.save(tmp_path / "good.safetensors"))
        (tmp_path / "good.safetensors").unlink()
    write = quantized_model.write_artifact

    def write_wrongly(name: str, network: Any, *arguments: Any) -> None:
        wrong = copy.deepcopy(network)
        wrong.get_submodule("linear").bias[0] -= 5
        write(name, wrong, *arguments)

    monkeypatch.setattr(quantized_model, "write_artifact", write_wrongly)
    with pytest.raises(
        ExportError, match=r"of the logits' spread|predicts the student's class"
    ) as e:
        getattr(model, call)(tmp_path / f"network{CALLS[call]}")
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


class Best(nn.Module):
    """Classes in the order of their logits, which a packed checkpoint cannot describe."""

    def __init__(self) -> None:
        super().__init__()
        self.body = digits_network()

    def forward(self, images: Tensor) -> Tensor:
        return torch.topk(self.body(images), 10, sorted=False).values


def test_a_network_that_cannot_be_saved_is_refused_before_any_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class TrainedError(Exception):
        pass

    def train(*_: Any, **__: Any) -> None:
        raise TrainedError

    monkeypatch.setattr(Trainer, "fit", train)
    message = r"packed cannot hold this network: the network calls topk .* choose export=none"
    with pytest.raises(ConfigurationError, match=message) as refusal:
        quantize(Best(), 3, overrides=SHORT, **INPUT)
    assert "\n" not in str(refusal.value)
    # Whoever wants no file gets the network.
    with pytest.raises(TrainedError):
        quantize(Best(), 3, overrides=[*SHORT, "export=none"], **INPUT)


def test_samples_of_the_run_are_kept_for_it(quantized: QuantizedModel) -> None:
    samples = quantized._samples
    assert samples is not None
    assert samples.shape == (TOGETHER, 1, 8, 8)
    assert not samples.requires_grad


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_what_the_caller_chose_for_torch_does_not_matter(
    quantized: QuantizedModel, tmp_path: Path, kind: torch.dtype
) -> None:
    state = torch.get_rng_state()
    torch.set_default_dtype(kind)
    try:
        with torch.inference_mode(), torch.device("meta"):
            quantized.save(tmp_path / "network.safetensors")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
