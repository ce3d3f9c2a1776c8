"""quantize and what it returns, on the bundled network."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hast_lightning
from hast_lightning import QuantizedModel, quantize
from hast_lightning.config import ModelConfig
from hast_lightning.errors import ConfigurationError, DataError, ModelError, StorageError, UserError
from hast_lightning.models import zoo
from tests.command_line import call
from tests.small_calls import INPUT, SHORT

README = Path(__file__).parents[2] / "README.md"


def test_predictions_are_what_the_result_says(
    quantized: QuantizedModel, held_out: tuple[Tensor, Tensor]
) -> None:
    images, labels = held_out
    right = (quantized.predict(images).labels == labels).float().mean()
    assert quantized.result.kept_top1 == pytest.approx(100 * float(right), abs=1e-3)
    assert (quantized.result.weight_bits, quantized.result.activation_bits) == (3, 4)


def test_a_saved_network_predicts_the_same(
    quantized: QuantizedModel, held_out: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    loaded = QuantizedModel.load(quantized.save(tmp_path / "new" / "network.safetensors"))
    assert torch.equal(loaded.predict(held_out[0]).logits, quantized.predict(held_out[0]).logits)
    assert loaded.description == quantized.description
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["network.safetensors"]
    with pytest.raises(DataError, match=r"result.json"):
        _ = loaded.result


def test_a_named_network_becomes_what_it_becomes_on_the_command_line(tmp_path: Path) -> None:
    bits = ("quantizer.weight_bits=3", "quantizer.activation_bits=4")
    typed = call(*SHORT, *bits, "data=none", "hydra.run.dir=typed", folder=tmp_path)
    assert typed.status == 0, typed
    quantize("digits", (3, 4), overrides=SHORT, folder=tmp_path / "called")
    first, second = (
        load_file(tmp_path / name / "student.safetensors") for name in ("typed", "called")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bytes_are_pixels(quantized: QuantizedModel) -> None:
    pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8) * 4
    normalized = (pixels.float() / 255 - 0.5) / 0.5
    assert torch.equal(quantized.predict(pixels).logits, quantized.predict(normalized).logits)


def test_the_network_and_the_process_stay_as_they_are(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    quantize(network, 3, overrides=SHORT, **INPUT)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    network.eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (3, 4, 5)}, r"bits=\(3, 4, 5\)"),
        ({"bits": 9}, "weight_bits"),
        ({"recipe": "nothing"}, "nothing"),
        ({"overrides": ["trainer.devices=2"]}, r"trainer.devices=2"),
        ({"overrides": ["order=[synthesis]"]}, "needs a stage that calibrates or trains"),
        ({"overrides": ["evaluate=false", "export=none"]}, "and evaluate=true"),
        ({"data": iter([])}, "only once"),
        (
            {"data": (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))},
            "the network takes",
        ),
        ({"data": (torch.zeros(2, 1, 8, 8), torch.tensor([0, 10]))}, "labels from 0 to 10"),
        ({"input_shape": None}, "input_shape"),
        ({"mean": None, "std": None}, "mean and std"),
        ({"num_classes": 7}, "num_classes=7"),
    ],
)
def test_a_mistake_is_one_line(
    network: nn.Module, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        quantize(network, **{"folder": tmp_path / "run", **INPUT, **options})
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_another_suffix_is_refused(quantized: QuantizedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ends in .safetensors"):
        quantized.save(tmp_path / "network.bin")


def test_a_given_network_is_refused_on_the_command_line() -> None:
    with pytest.raises(ModelError, match="handed over in Python"):
        zoo.load(ModelConfig(provider="given", name="x"))


def test_the_readme_is_right(
    network: nn.Module,
    held_out: tuple[Tensor, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    section = README.read_text().partition("## From Python")[2]
    snippet = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert snippet is not None
    monkeypatch.chdir(tmp_path)
    # The same call, short.
    monkeypatch.setattr(
        hast_lightning,
        "quantize",
        lambda *a, **k: quantize(*a, overrides=SHORT, **k),
        raising=False,
    )
    names = {"network": network, "images": held_out[0], "labels": held_out[1]}
    exec(snippet[1], names)
    assert float(capsys.readouterr().out.splitlines()[0]) > 10
    assert (tmp_path / "digits.safetensors").stat().st_size < 100_000


def test_calls_in_two_threads_come_one_after_the_other(network: nn.Module) -> None:
    """What is set for the process is set for both."""
    output = sys.stdout
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(quantize, network, 3, overrides=SHORT, **INPUT) for _ in range(2)]
        one, other = (call.result() for call in calls)
    assert sys.stdout is output
    images = torch.zeros(2, 1, 8, 8)
    assert torch.equal(one.predict(images).logits, other.predict(images).logits)


@pytest.mark.parametrize("name", ["a_file/network.safetensors", "x" * 250 + ".safetensors"])
def test_a_place_that_cannot_be_written_to_is_one_line(
    quantized: QuantizedModel, tmp_path: Path, name: str
) -> None:
    (tmp_path / "a_file").write_text("mine")
    with pytest.raises(StorageError, match="cannot be written: "):
        quantized.save(tmp_path / name)
