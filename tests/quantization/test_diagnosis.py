from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.quantization.axes import Ranges
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.diagnosis import ACTIVATION, WEIGHT, LayerDiagnosis, diagnose
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    freeze_ranges,
    quantized_layers,
    set_activation_mode,
)
from hast_lightning.quantization.learned import LSQ
from hast_lightning.quantization.search import LeastSquares, MinMax
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig
from hast_lightning.quantization.transformer_placement import Transformer
from tests import transformers


class Shared(nn.Module):
    """Two convolutions, one ReLU that is called twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        return self.fc(x.mean((2, 3)))


def converted(**options: object) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    settings = {"weight_bits": 3, "activation_bits": 4, **options}
    return convert(Shared(), QuantizerConfig(**settings))  # type: ignore[arg-type]


def calibrated(**options: object) -> torch.fx.GraphModule:
    student = converted(**options)
    set_activation_mode(student, ActivationMode.OBSERVE)
    student(torch.randn(8, 3, 6, 6))
    freeze_ranges(student)
    return student


def of_kind(found: list[LayerDiagnosis], kind: str) -> dict[str, LayerDiagnosis]:
    return {one.name: one for one in found if one.kind == kind}


def test_every_quantized_tensor_is_there_once_in_order_of_execution() -> None:
    found = diagnose(calibrated())
    assert [(one.name, one.kind) for one in found] == [
        ("conv1", WEIGHT),
        ("relu", ACTIVATION),
        ("conv2", WEIGHT),
        ("relu-2", ACTIVATION),
        ("fc", WEIGHT),
    ]


def test_bits_are_those_of_each_layer() -> None:
    found = diagnose(calibrated(overrides=[LayerBits("conv2", 8, 6)]))
    assert [one.bits for one in found] == [3, 6, 8, 4, 3]


@pytest.mark.parametrize("ranges", [MinMax, LeastSquares, LSQ])
def test_weights_are_measured_against_their_own_rounding(ranges: type[Ranges]) -> None:
    student = calibrated(ranges=ranges())
    found = of_kind(diagnose(student), WEIGHT)
    for name, layer in quantized_layers(student):
        rounded = layer.weight_quantizer.rounded(layer.weight)
        one, weight = found[name], layer.weight.detach()
        relative = float(((weight - rounded) ** 2).sum() / (weight**2).sum())
        assert one.error == pytest.approx(relative, rel=1e-5)
        assert 0 < one.error < 0.2
        # Every rounded weight lies on the grid that is reported.
        assert one.low is not None and one.high is not None
        assert one.low - 1e-6 <= float(rounded.min()) and float(rounded.max()) <= one.high + 1e-6


def test_more_bits_lose_less() -> None:
    errors = [
        of_kind(diagnose(calibrated(weight_bits=bits)), WEIGHT)["conv1"].error for bits in (2, 4, 8)
    ]
    assert errors[0] > 4 * errors[1] > 64 * errors[2]  # type: ignore[operator]


def test_activation_ranges_are_the_frozen_ones() -> None:
    student = calibrated()
    (first, _) = student.activation_quantizers.children()  # type: ignore[operator, union-attr]
    one = of_kind(diagnose(student), ACTIVATION)["relu"]
    assert one.low == 0
    assert one.high == pytest.approx(float(first.moving_range.high / first.moving_range.weight))
    assert one.scale == pytest.approx(float(first.scale))
    assert one.error is None


@pytest.mark.parametrize("ranges", [MinMax, LSQ])
def test_an_activation_without_a_range_says_so(ranges: type[Ranges]) -> None:
    student = converted(ranges=ranges())
    one = of_kind(diagnose(student), ACTIVATION)["relu"]
    assert (one.low, one.high, one.scale) == (None, None, None)
    set_activation_mode(student, ActivationMode.OBSERVE)
    assert of_kind(diagnose(student), ACTIVATION)["relu"].high is None
    student(torch.randn(8, 3, 6, 6))
    observed = of_kind(diagnose(student), ACTIVATION)["relu"].high
    freeze_ranges(student)
    assert of_kind(diagnose(student), ACTIVATION)["relu"].high == pytest.approx(observed)


def test_weights_that_are_all_zero_lose_nothing() -> None:
    student = calibrated()
    with torch.no_grad():
        student.get_submodule("fc").weight.zero_()  # type: ignore[union-attr, operator]
    error = of_kind(diagnose(student), WEIGHT)["fc"].error
    assert error is not None and error < 1e-6


def test_nothing_is_changed() -> None:
    student = calibrated()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    stream = torch.get_rng_state()
    assert diagnose(student) == diagnose(student)
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_powers_of_two_end_at_one() -> None:
    """They have no range, and so nothing that is not calibrated yet."""
    settings = QuantizerConfig(bits=4, placement=Transformer())
    found = of_kind(diagnose(convert(transformers.network(), settings)), ACTIVATION).values()
    assert [(one.low, one.high) for one in found if one.low is not None] == [(0.0, 1.0)] * 2
