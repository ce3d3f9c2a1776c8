"""Networks of signals (C, L): quantized, saved and read like those of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hast_lightning
from hast_lightning.api.quantized_model import QuantizedModel
from hast_lightning.errors import ConfigurationError, DataError, UserError
from tests.small_calls import SHORT

INPUT: dict[str, Any] = {"input_shape": (2, 24), "mean": [0.0, 0.0], "std": [1.0, 1.0]}
NO_CROPS = "stages.distillation.transforms.crop_and_flip.enabled=false"
ON_BANK = [
    "stages.calibration.source=bank",
    "stages.calibration.terms.bns.enabled=false",
    "stages.calibration.terms.cross_entropy.enabled=false",
]


class Residual(nn.Module):
    """A block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm1d(channels)
        self.second = nn.Conv1d(channels, channels, 3, padding=2, dilation=2, groups=2)
        self.second_norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first_norm(self.first(x)).relu()
        return (self.second_norm(self.second(y)) + x).relu()


def network() -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv1d(2, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(8), nn.ReLU()]
    head = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4)]
    made = nn.Sequential(*stem, Residual(8), *head)
    made.train()
    for _ in range(20):
        made(torch.randn(16, 2, 24))
    return made.eval()


def quantized(**changes: Any) -> QuantizedModel:
    settings = {"method": "hast", "schedule": "demo", "overrides": [*SHORT, NO_CROPS, *ON_BANK]}
    return hast_lightning.quantize(network(), 4, **{**settings, **INPUT, **changes})


def test_a_whole_run_on_signals(tmp_path: Path) -> None:
    inputs = torch.randn(12, 2, 24)
    labels = network()(inputs).argmax(1)
    model = quantized(data=(inputs, labels), folder=tmp_path / "run")
    assert model(inputs).shape == (12, 4)
    assert model.description.input_shape == (2, 24)
    assert model.bits == dict.fromkeys(["0", "3.first", "3.second", "6"], 4)
    assert model.result is not None
    assert model.result.teacher_top1 == 100
    expected = 100 * float((model(inputs).argmax(1) == labels).float().mean())
    assert model.evaluate((inputs, labels)) == pytest.approx(expected)
    read = QuantizedModel.load(model.save(tmp_path / "student.safetensors"))
    torch.testing.assert_close(read(inputs), model(inputs))
    assert model.export_onnx(tmp_path / "student.onnx").exists()
    torch.testing.assert_close(model.predict(inputs).logits, model(inputs))
    for one in (inputs[0], [inputs[0]], inputs[:1].numpy()):
        torch.testing.assert_close(model.predict(one).logits, model(inputs[:1]))
    assert "2 × 24 (channels × length)" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("method", ["zeroq", "without_training", "noise"])
def test_other_methods_take_signals(method: str) -> None:
    model = quantized(method=method, overrides=SHORT)
    assert model(torch.randn(3, 2, 24)).shape == (3, 4)


def test_what_is_chosen_for_a_network_of_signals_takes_them() -> None:
    with pytest.warns(UserWarning, match="nothing was measured on images of 2x24"):
        model = hast_lightning.quantize(network(), 4, overrides=SHORT, **INPUT)
    assert model(torch.randn(3, 2, 24)).shape == (3, 4)


def test_what_is_made_for_images_alone_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"crop_and_flip crops images \(C, H, W\), and "):
        quantized(overrides=[*SHORT, *ON_BANK])
    with pytest.raises(ConfigurationError, match=r"makes images \(C, H, W\), and .*24"):
        quantized(overrides=[*SHORT, NO_CROPS])


def test_inputs_of_another_shape_are_refused() -> None:
    data = (torch.randn(4, 2, 25), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match=r"the network takes \(N, 2, 24\)"):
        quantized(data=data)


def test_a_shape_of_one_number_in_a_tuple_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"or \(channels, length\) of signals"):
        quantized(input_shape=(24,))


def test_inspect_counts_the_multiplications_of_signals() -> None:
    found = hast_lightning.inspect(network(), 4, method="without_training", **INPUT)
    calls = {call.name: call for call in found.calls}
    assert calls["0"].operations[:2] == ("5 /2", "BN")
    assert calls["0"].output_shape == (8, 12)
    assert calls["0"].multiplications == 2 * 5 * 8 * 12
    assert calls["3.second"].operations[0] == "3 d2 g2"
    assert calls["3.second"].multiplications == 4 * 3 * 8 * 12
