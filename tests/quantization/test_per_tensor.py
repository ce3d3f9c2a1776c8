"""One range for all weights of a layer, with the BatchNorm behind it folded in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from hast_lightning.errors import ConfigurationError
from hast_lightning.export.artifact import open_artifact, write_artifact
from hast_lightning.export.folding import fold_into_scales
from hast_lightning.export.frozen import freeze, frozen_layers
from hast_lightning.quantization.adaround import Adaptive
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.diagnosis import diagnose
from hast_lightning.quantization.fake_quant import QuantizedLayer, quantized_layers
from hast_lightning.quantization.learned import LSQ, step_parameters
from hast_lightning.quantization.placement import Integer
from hast_lightning.quantization.search import LeastSquares
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig
from hast_lightning.quantization.size import float_bytes, quantized_bytes
from tests.export.families import SHAPE, calibrated, family, noise
from tests.export.test_packed import DESCRIPTION

RANGES: dict[str, dict[str, Any]] = {
    "minmax": {},
    "mse": {"ranges": LeastSquares()},
    "lsq": {"ranges": LSQ(), "gradient": "clipped"},
    "deploy": {"placement": Integer(), "include_zero": True},
}
FACTORS = torch.tensor([0.5, -2.0, 1.0, 0.0, 3.0])


def layer_and_norm() -> nn.Sequential:
    """A convolution of five channels, one of which its BatchNorm turns round and one ends."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()).eval()
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.eps = 0.0
    norm.weight.data.copy_(FACTORS)
    return network


def first_layer(student: nn.Module) -> QuantizedLayer:
    return quantized_layers(student)[0][1]


def expected_minmax(weight: Tensor, factors: Tensor, bits: int) -> Tensor:
    """Fold, round the whole tensor between its ends, and unfold."""
    folded = weight * factors
    scale = (folded.max() - folded.min()) / (2**bits - 1)
    low = torch.round(folded.min() / scale)
    return (torch.round(folded / scale).clamp(low, low + 2**bits - 1) * scale) / factors


def test_folded_weights_share_the_range_from_minimum_to_maximum() -> None:
    network = layer_and_norm()
    student = convert(network, QuantizerConfig(bits=3, per_tensor=True))
    layer = first_layer(student)
    factors = torch.where(FACTORS == 0, 1.0, FACTORS).view(-1, 1, 1, 1)
    found = layer.weight_quantizer.rounded(layer.weight)
    assert torch.allclose(found, expected_minmax(layer.weight.detach(), factors, 3), atol=1e-6)
    # One scale a channel is another grid.
    plain = convert(network, QuantizerConfig(bits=3))
    assert not torch.allclose(found, first_layer(plain).weight_quantizer.rounded(layer.weight))


def integers_of_folded(layer: QuantizedLayer, factors: Tensor) -> Tensor:
    """Return the folded, rounded weights in units of their one scale."""
    scale, _ = layer.weight_quantizer.parameters_of(layer.weight)
    folded = layer.weight_quantizer.rounded(layer.weight) * factors
    common = (scale * factors).flatten()
    assert torch.allclose(common, common[0].expand_as(common), rtol=1e-5)
    return folded / common[0]


@pytest.mark.parametrize("ranges", RANGES)
def test_the_range_follows_the_batch_norm_of_the_same_student(ranges: str) -> None:
    student = convert(layer_and_norm(), QuantizerConfig(bits=4, per_tensor=True, **RANGES[ranges]))
    # A copy has a BatchNorm of its own.
    student = copy.deepcopy(student)
    norm: Any = student.get_submodule("1")
    norm.running_var.copy_(torch.tensor([0.25, 4.0, 9.0, 1.0, 0.04]))
    factors = FACTORS / norm.running_var.sqrt()
    factors = torch.where(FACTORS == 0, 1.0, factors).view(-1, 1, 1, 1)
    steps = integers_of_folded(first_layer(student), factors)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert steps.max() - steps.min() <= 15.01


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("name", ["cifar_resnet", "mobilenet_v2"])
def test_files_hold_one_scale_a_layer_and_compute_what_the_student_does(
    name: str, ranges: str, tmp_path: Path
) -> None:
    student = calibrated(family(name), 8, per_tensor=True, **RANGES[ranges])
    frozen = freeze(student)
    for _, layer in frozen_layers(fold_into_scales(frozen)):
        assert layer.quantized_weight.per_tensor
    path = tmp_path / "student.onnx"
    write_artifact("onnx", frozen, DESCRIPTION, path)
    images = noise(32, *SHAPE, seed=5)
    with torch.no_grad():
        expected = student(images)
    deviation = (open_artifact(path)[0](images) - expected).abs().amax(1) / expected.abs().max()
    assert deviation.median() < 0.02
    graph = onnx.load(path).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    read = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(read) > 5
    assert all(shapes[node.input[1]] == [] for node in read)


def test_one_learned_step_gets_the_gradients_of_all_channels() -> None:
    student = convert(
        layer_and_norm(),
        QuantizerConfig(
            weight_bits=4, activation_bits=32, per_tensor=True, ranges=LSQ(), gradient="clipped"
        ),
    )
    (step,) = step_parameters(student)
    assert step.numel() == 1
    layer = first_layer(student)
    torch.manual_seed(1)
    upstream = torch.randn_like(layer.weight)
    layer.weight_quantizer(layer.weight).backward(upstream)
    # Equation 3 for the folded weights, whose gradient is the upstream one over the factors.
    factors = torch.where(FACTORS == 0, 1.0, FACTORS).view(-1, 1, 1, 1)
    quantizer: Any = layer.weight_quantizer
    s = float(quantizer.first_step_size)
    steps = layer.weight.detach() * factors / s
    slope = torch.where((steps > -8) & (steps < 7), steps.round() - steps, steps.clamp(-8, 7))
    g = (layer.weight.numel() * 7) ** -0.5
    gradient = (slope * upstream / factors).sum() * g / s
    assert torch.allclose(step.grad.flatten(), gradient, rtol=1e-4)  # type: ignore[union-attr]
    inside = ((steps > -8) & (steps < 7)).float()
    assert torch.equal(layer.weight.grad, upstream * inside)


def test_other_bits_begin_with_one_step_again() -> None:
    student = convert(layer_and_norm(), QuantizerConfig(bits=4, per_tensor=True, ranges=LSQ()))
    layer = first_layer(student)
    layer.weight_quantizer.change_bits(2, layer.weight)
    direct = convert(layer_and_norm(), QuantizerConfig(bits=2, per_tensor=True, ranges=LSQ()))
    other = first_layer(direct)
    assert torch.equal(
        layer.weight_quantizer.rounded(layer.weight), other.weight_quantizer.rounded(other.weight)
    )


def test_the_size_counts_one_range_a_layer_and_the_diagnosis_orders_its_ends() -> None:
    network = layer_and_norm()
    sizes = {
        shared: quantized_bytes(
            convert(network, QuantizerConfig(bits=4, per_tensor=shared)), float_bytes(network)
        )
        for shared in (True, False)
    }
    assert sizes[False] - sizes[True] == 4 * 5
    student = convert(network, QuantizerConfig(bits=4, per_tensor=True))
    weights = diagnose(student)[0]
    assert weights.low is not None
    assert weights.high is not None
    assert weights.scale is not None
    assert weights.low < 0 < weights.high
    assert weights.scale > 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"group_size": 4}, "a group_size"),
        ({"weight_bits": 1}, "weight_bits=1"),
        ({"overrides": [LayerBits("out", weight_bits=1)]}, "weight_bits=1"),
        ({"rounding": Adaptive()}, "rounding=adaptive"),
    ],
)
def test_what_has_scales_of_its_own_is_refused(other: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"per_tensor=true with {said}"):
        QuantizerConfig(per_tensor=True, **other)
