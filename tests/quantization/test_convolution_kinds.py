"""Kinds of convolutions: weights by output channel, folding, corrections, costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.errors import ModelError
from hast_lightning.graph.arguments import arguments_of
from hast_lightning.graph.operations import BATCH_NORMS, CONVOLUTION_LAYERS
from hast_lightning.graph.tracing import batch_norm_inputs, fold_batch_norms, trace
from hast_lightning.graph.weights import output_first, swapped
from hast_lightning.models.preparation import prepare
from hast_lightning.quantization.channel_pairs import find_pairs
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.correction import (
    correct_biases,
    correct_by_statistics,
    reestimate_batch_norms,
)
from hast_lightning.quantization.equalization import equalize
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.quantization.layer_bits import QUANTIZABLE
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig
from hast_lightning.quantization.structure import list_calls
from tests.convolution_kinds import KINDS, SHAPE, network_of
from tests.export.families import calibrated, noise

TRANSPOSED = [
    nn.ConvTranspose1d(6, 4, 3, groups=2),
    nn.ConvTranspose2d(6, 4, (3, 2), stride=2),
    nn.ConvTranspose2d(6, 8, 3, groups=2, output_padding=1, stride=2),
    nn.ConvTranspose3d(4, 4, 2, groups=4),
]


def values_for(layer: nn.Module) -> Tensor:
    return noise(2, layer.in_channels, *(5,) * len(layer.kernel_size))  # type: ignore[call-overload, arg-type]


def rounded_by_channel(layer: nn.Module, bits: int) -> Tensor:
    """Weights of a transposed convolution on a grid per output channel, one by one."""
    weight, groups = layer.weight.detach(), int(layer.groups)  # type: ignore[arg-type, operator]
    result = torch.full_like(weight, torch.nan)
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    for group in range(groups):
        rows = slice(group * inputs, (group + 1) * inputs)
        for channel in range(outputs):
            part = weight[rows, channel]
            scale = (part.max() - part.min()) / (2**bits - 1)
            zero = torch.round(-part.min() / scale)
            q = (torch.round(part / scale) + zero).clamp(0, 2**bits - 1)
            result[rows, channel] = (q - zero) * scale
    return result


@pytest.mark.parametrize("layer", TRANSPOSED)
def test_a_transposed_convolution_has_a_range_per_output_channel(layer: nn.Module) -> None:
    network = nn.Sequential(layer, nn.ReLU())
    student = convert(network, QuantizerConfig(bits=3))
    ((_, quantized),) = quantized_layers(student)
    inputs = values_for(layer)
    with torch.no_grad():
        weight = layer.weight.clone()  # type: ignore[operator]
        layer.weight.copy_(rounded_by_channel(layer, 3))  # type: ignore[operator]
        expected = layer(inputs).relu()
        layer.weight.copy_(weight)  # type: ignore[operator]
    assert len(quantized.weight) == layer.out_channels
    torch.testing.assert_close(student(inputs), expected)


@pytest.mark.parametrize("layer", TRANSPOSED)
def test_swapping_inputs_and_outputs_undoes_itself(layer: nn.Module) -> None:
    weight, groups = layer.weight, int(layer.groups)  # type: ignore[arg-type]
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(swapped(output_first(layer), groups), weight)


def test_a_size_that_is_asked_for_is_kept() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=[10, 10]).relu()

    network = Sized()
    student = convert(network, QuantizerConfig(bits=8))
    assert student(noise(1, 2, 5, 5)).shape == network(noise(1, 2, 5, 5)).shape == (1, 3, 10, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_are_quantized_and_all_batch_norms_matched(kind: str) -> None:
    network = network_of(kind)
    student = convert(network, QuantizerConfig(bits=4))
    layers = [name for name, layer in network.named_modules() if isinstance(layer, QUANTIZABLE)]
    norms = [layer for layer in network.modules() if isinstance(layer, BATCH_NORMS)]
    assert [name for name, _ in quantized_layers(student)] == layers
    assert len(batch_norm_inputs(trace(network))) == len(norms) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norms_fold_into_the_teacher(kind: str) -> None:
    network = network_of(kind)
    folded = fold_batch_norms(trace(network))
    assert not any(isinstance(layer, BATCH_NORMS) for layer in folded.modules())
    images = noise(4, *SHAPE)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_corrections_take_the_error_off_the_means(kind: str) -> None:
    network = network_of(kind)
    images = noise(64, *SHAPE)
    teacher = trace(network)
    student = calibrated(network, 3, images=images)
    before = (student(images) - network(images)).mean(0).norm()
    assert reestimate_batch_norms(student, teacher, images) >= 1
    assert correct_biases(student, teacher, images) >= 1
    after = (student(images) - network(images)).mean(0).norm()
    assert after < 0.5 * before


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_what_batch_norms_tell_corrects_transposed_convolutions(
    dimensions: int, stride: int
) -> None:
    torch.manual_seed(0)
    norm, kind = (
        (nn.BatchNorm1d, nn.ConvTranspose1d),
        (nn.BatchNorm2d, nn.ConvTranspose2d),
        (nn.BatchNorm3d, nn.ConvTranspose3d),
    )[dimensions - 1]
    network = nn.Sequential(norm(4), nn.ReLU(), kind(4, 6, 2, stride, groups=2)).eval()
    with torch.no_grad():
        network[0].bias.normal_(0.5)  # type: ignore[union-attr, operator]
    student = convert(network, QuantizerConfig(bits=2, activation_bits=32))
    inputs = noise(64, 4, *(10,) * dimensions)
    channels = (0, *range(2, dimensions + 2))
    expected = network(inputs).mean(channels)
    before = (student(inputs).mean(channels) - expected).norm()
    assert correct_by_statistics(student, trace(network)) == 1
    assert (student(inputs).mean(channels) - expected).norm() < 0.5 * before


@pytest.mark.parametrize("kind", KINDS)
def test_equalization_leaves_the_function_as_it_is(kind: str) -> None:
    network = network_of(kind)
    pairs = find_pairs(trace(network))
    images = noise(4, *SHAPE)
    expected = network(images)
    equalize(pairs)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_of_any_dimensions_are_equalized(dimensions: int) -> None:
    kind, norm = CONVOLUTION_LAYERS[dimensions - 1], BATCH_NORMS[dimensions - 1]
    torch.manual_seed(0)
    network = nn.Sequential(kind(2, 4, 3), norm(4), nn.ReLU(), kind(4, 4, 3)).eval()
    inputs = noise(2, 2, *(6,) * dimensions)
    with torch.no_grad():
        network[1].running_var.uniform_(0.1, 4)  # type: ignore[union-attr, operator]
        expected, before = network(inputs), network[3].weight.clone()  # type: ignore[operator]
    pairs = find_pairs(trace(network))
    equalize(pairs)
    assert len(pairs) == 1
    assert not torch.allclose(network[3].weight, before)  # type: ignore[arg-type]
    torch.testing.assert_close(network(inputs), expected, rtol=1e-4, atol=1e-5)


def test_transposed_convolutions_are_not_equalized() -> None:
    layers = [nn.ConvTranspose2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3)]
    assert not find_pairs(trace(nn.Sequential(*layers).eval()))


@pytest.mark.parametrize("kind", KINDS)
def test_multiplications_are_those_that_are_done(kind: str) -> None:
    network = network_of(kind)
    student = convert(network, QuantizerConfig(bits=4))
    calls = list_calls(student, (), torch.zeros(1, *SHAPE))
    counted: dict[str, int] = {}

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Apply the layer to ones with weights of one: each product adds one to the sum."""
        bare = type(layer)(**arguments(layer))
        nn.init.ones_(bare.weight)  # type: ignore[arg-type]
        counted[name] = int(bare(torch.ones_like(inputs[0][:1])).sum())

    handles = []
    for name, layer in network.named_modules():
        if isinstance(layer, QUANTIZABLE):
            handles.append(
                layer.register_forward_hook(lambda m, i, o, name=name: count(name, m, i, o))
            )
    network(torch.zeros(1, *SHAPE))
    found = {call.name: call.multiplications for call in calls if call.weight_bits}
    # Products with the zeros of the padding are found as well, and are not counted here.
    assert found.keys() == counted.keys()
    assert all(counted[name] <= found[name] for name in found)
    without_padding = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, QUANTIZABLE) and not _pads(layer)
    ]
    assert without_padding
    assert all(counted[name] == found[name] for name in without_padding)


def arguments(layer: nn.Module) -> dict[str, object]:
    return {**arguments_of(layer, type(layer)), "bias": False}


def _pads(layer: nn.Module) -> bool:
    padding = getattr(layer, "padding", 0)
    return padding == "same" or (padding != 0 and any(padding))  # type: ignore[arg-type]


def test_a_layer_of_another_kind_is_refused_by_name() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pairs = nn.Bilinear(3, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pairs(x, x).relu()

    with pytest.raises(
        ModelError, match=r"pairs is a Bilinear, which cannot .*only Conv1d, Conv2d"
    ):
        convert(Pairs(), QuantizerConfig(bits=4))


def test_a_transposed_convolution_that_shares_its_weights_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.ConvTranspose2d(2, 4, 3))
    convert(network, QuantizerConfig(bits=4))
    network[2].weight = network[0].weight
    with pytest.raises(ModelError, match="layers 0 and 2 share their weights, which no student"):
        convert(network, QuantizerConfig(bits=4))


def test_a_transposed_layer_may_stay_in_floating_point() -> None:
    network = nn.Sequential(nn.ConvTranspose1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3))
    settings = QuantizerConfig(bits=4, overrides=[LayerBits("0", bits=32)])
    student = convert(network, settings)
    assert type(student.get_submodule("0")) is nn.ConvTranspose1d
    assert [name for name, _ in quantized_layers(student)] == ["2"]


def test_functions_become_layers_of_their_kind() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(noise(4, 2, 3))
            self.second = nn.Parameter(noise(4, 3, 2, seed=1))
            self.head = nn.Linear(6, 3)

        def forward(self, images: Tensor) -> Tensor:
            x = F.conv1d(images.flatten(2), self.first, None, 2).relu()
            x = F.conv_transpose1d(x, self.second, None, 2, 0, 0, 2).relu()
            return self.head(x.mean(2))

    network = Functional().eval()
    prepared, _ = prepare(network, SHAPE, "own")
    student = convert(prepared, QuantizerConfig(bits=4))
    kinds = sorted(type(layer).__name__ for _, layer in quantized_layers(student))
    assert kinds == ["QuantConv1d", "QuantConvTranspose1d", "QuantLinear"]
    images = noise(2, *SHAPE)
    torch.testing.assert_close(prepared(images), network(images))
