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
from hast_lightning.graph.tracing import trace
from hast_lightning.quantization.adaround import Adaptive
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.correction import reestimate_batch_norms
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
SAFE = torch.tensor([0.5, -2.0, 1.0, 1.0, 3.0]).view(-1, 1, 1, 1)
"""What to divide by: nothing comes out of the channel that ends."""
ENDED = 3


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
    found = layer.weight_quantizer.rounded(layer.weight)
    live = [index for index in range(5) if index != ENDED]
    expected = expected_minmax(layer.weight.detach()[live], SAFE[live], 3)
    assert torch.allclose(found[live], expected, atol=1e-6)
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
    factors = SAFE / norm.running_var.sqrt().view(-1, 1, 1, 1)
    factors[ENDED] = 1
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
    quantizer: Any = layer.weight_quantizer
    s = float(quantizer.first_step_size)
    steps = layer.weight.detach() * SAFE / s
    slope = torch.where((steps > -8) & (steps < 7), steps.round() - steps, steps.clamp(-8, 7))
    g = (layer.weight.numel() * 7) ** -0.5
    gradient = (slope * upstream / SAFE).sum() * g / s
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


def test_a_channel_that_ends_does_not_widen_the_range_of_the_others(tmp_path: Path) -> None:
    for least in (0.0, 1e-25, 1e-21):
        network = layer_and_norm()
        with torch.no_grad():
            network[1].weight.fill_(0.01)  # type: ignore[union-attr,operator]
            network[1].weight[ENDED] = least  # type: ignore[index]
        student = calibrated(
            network, 4, per_tensor=True, images=noise(8, 3, 8, 8), **RANGES["deploy"]
        )
        layer = first_layer(student)
        rounded = layer.weight_quantizer.rounded(layer.weight)
        assert float((rounded - layer.weight)[:ENDED].abs().max()) < 0.03
        for _, folded in frozen_layers(fold_into_scales(freeze(student))):
            assert folded.quantized_weight.per_tensor
            assert not folded.made_weight()[ENDED].any()


def test_a_correction_leaves_integers_where_they_are() -> None:
    network = family("mobilenet_v2").train()
    for seed in range(20):  # Statistics are those of such images.
        network(noise(16, *SHAPE, seed=seed))
    student = calibrated(network.eval(), 4, 8, per_tensor=True)
    before = {name: integers(layer) for name, layer in quantized_layers(student)}
    images = noise(16, *SHAPE, seed=2)
    distance = float((student(images) - network(images)).square().mean())
    means = [norm.running_mean.clone() for norm in norms(student)]
    assert reestimate_batch_norms(student, trace(network), images) == len(means) > 5
    assert not all(map(torch.equal, means, (norm.running_mean for norm in norms(student))))
    assert all(torch.equal(before[name], integers(e)) for name, e in quantized_layers(student))
    assert float((student(images) - network(images)).square().mean()) < 0.8 * distance


def integers(layer: QuantizedLayer) -> Tensor:
    return layer.weight_quantizer.integers_of(layer.weight)


def norms(network: nn.Module) -> list[Any]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize("between", [nn.Identity, nn.Dropout])
def test_what_does_nothing_may_lie_before_the_batch_norm(between: type[nn.Module]) -> None:
    first, norm, relu = layer_and_norm()
    network = nn.Sequential(first, between(), norm, relu).eval()
    student = calibrated(network, 4, per_tensor=True, images=noise(8, 3, 8, 8))
    (layer,) = frozen_layers(fold_into_scales(freeze(student)))
    assert layer[1].quantized_weight.per_tensor


def test_one_channel_that_its_batch_norm_turns_learns_as_others_do() -> None:
    found = []
    for sign in (1.0, -1.0):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.ReLU()).eval()
        with torch.no_grad():
            network[1].weight.fill_(sign)  # type: ignore[union-attr,operator]
            network[0].weight.mul_(sign)  # type: ignore[operator]
        options = {**RANGES["lsq"], "weight_bits": 4, "activation_bits": 32}
        student = convert(network, QuantizerConfig(per_tensor=True, **options))
        layer = first_layer(student)
        (layer.weight_quantizer(layer.weight) * sign).square().sum().backward()
        found.append((layer.weight.grad * sign, step_parameters(student)[0].grad))  # type: ignore[operator]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other)
        assert one.abs().max() > 0


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
    quantizer = first_layer(student).weight_quantizer
    assert weights.scale == float(quantizer.shared_parameters(first_layer(student).weight).scale)
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
