"""From a network to its student: names, values, what is quantized and what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.errors import ModelError
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    QuantConv2d,
    QuantLinear,
    activation_quantizers,
    quantized_layers,
    set_activation_mode,
)
from hast_lightning.quantization.settings import QuantizerConfig

SETTINGS = QuantizerConfig(weight_bits=3, activation_bits=4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def with_random_statistics(network: nn.Module) -> nn.Module:
    """BatchNorms as if trained, so that leaving one out would show."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.2)
    return network.eval()


def resnet8() -> nn.Module:
    torch.manual_seed(0)
    return with_random_statistics(CifarResNet(8, 10, width=4))


class SharedActivation(nn.Module):
    """One ReLU module that is called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.second(x) + x)
        return self.last(self.relu(x.mean((2, 3)) - 0.1))


class EverySpelling(nn.Module):
    """All the ways in which PyTorch spells ReLU and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.relu6 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu6(1 - x)
        x = F.relu(0.9 - x)
        x = F.relu6(0.8 - x)
        x = F.relu(0.7 - x, inplace=True)
        x = torch.relu(0.6 - x)
        x = torch.relu_(0.5 - x)
        x = (0.4 - x).relu()
        return (0.3 - x).relu_()


def test_names_and_values_of_the_parameters_are_kept() -> None:
    network = resnet8()
    student = convert(network, SETTINGS)
    parameters, expected = dict(student.named_parameters()), dict(network.named_parameters())
    assert list(parameters) == list(expected)
    torch.testing.assert_close(parameters, expected, rtol=0, atol=0)
    state = student.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_the_original_is_left_as_it_was() -> None:
    network = resnet8().requires_grad_(False)
    before, modules = copy.deepcopy(network.state_dict()), [type(m) for m in network.modules()]
    images = noise(2, 3, 16, 16)
    output = network(images)
    student = convert(network, SETTINGS)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert [type(module) for module in network.modules()] == modules
    assert torch.equal(network(images), output)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_every_convolution_and_linear_layer_is_quantized_the_first_and_the_last_too() -> None:
    network = resnet8()
    student = convert(network, SETTINGS)
    expected = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    layers = dict(quantized_layers(student))
    assert list(layers) == expected
    assert expected[0] == "conv1"
    assert expected[-1] == "linear"
    assert isinstance(layers["conv1"], QuantConv2d)
    assert isinstance(layers["linear"], QuantLinear)
    assert all(layer.weight_quantizer.bits == 3 for layer in layers.values())
    # Each has its own quantizer: what one holds must not reach another.
    assert len({id(layer.weight_quantizer) for layer in layers.values()}) == len(expected)


def test_every_activation_quantizer_follows_the_settings() -> None:
    settings = QuantizerConfig(
        weight_bits=3, activation_bits=5, gradient="clipped", momentum=0.5, include_zero=True
    )
    student = convert(resnet8(), settings)
    quantizers = activation_quantizers(student)
    assert len(quantizers) == 7  # the stem, and two in each of three blocks
    for quantizer in quantizers:
        assert (quantizer.bits, quantizer.gradient) == (5, "clipped")
        assert (quantizer.moving_range.momentum, quantizer.include_zero) == (0.5, True)
    assert all(layer.weight_quantizer.include_zero for _, layer in quantized_layers(student))


@pytest.mark.parametrize(
    ("build", "calls"), [(SharedActivation, 3), (EverySpelling, 9), (resnet8, 7)]
)
def test_every_call_of_an_activation_has_its_own_quantizer(
    build: Callable[[], nn.Module], calls: int
) -> None:
    torch.manual_seed(0)
    student = convert(build().eval(), SETTINGS)
    quantizers = activation_quantizers(student)
    assert len(quantizers) == calls
    set_activation_mode(student, ActivationMode.OBSERVE)
    with torch.no_grad():
        student(noise(4, 3, 8, 8))
    ranges = torch.tensor([[float(end) for end in q.moving_range.range()] for q in quantizers])
    assert ranges.isfinite().all()
    assert (ranges[:, 0] >= 0).all()  # what a ReLU puts out, not what goes in
    assert len(ranges[:, 1].unique()) == calls


def test_what_uses_an_activation_gets_it_quantized() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.one, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            return self.one(x) + self.other(x)

    torch.manual_seed(0)
    student = convert(Network().eval(), QuantizerConfig(weight_bits=8, activation_bits=2))
    seen: list[Tensor] = []
    for name in ("first", "one", "other"):
        student.get_submodule(name).register_forward_hook(lambda _, args, __: seen.append(args[0]))
    activation_quantizers(student)[0].set_range(torch.tensor(0.0), torch.tensor(1.5))
    images = 4 * noise(2, 3, 8, 8)
    student(images)
    assert torch.equal(seen[0], images)  # the image itself stays in floating point
    for features in seen[1:]:
        torch.testing.assert_close(features.unique(), torch.tensor([0.0, 0.5, 1.0, 1.5]))


def build_torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: with_random_statistics(
        torchvision.models.get_model(name, weights=None, num_classes=10)
    )


@pytest.mark.parametrize(
    "build",
    [resnet8, SharedActivation, EverySpelling, build_torchvision("resnet18")],
    ids=["cifar", "shared", "spellings", "resnet18"],
)
def test_without_rounding_the_student_is_the_network(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = build().eval()
    student = convert(network, QuantizerConfig(8))
    for _, layer in quantized_layers(student):
        layer.weight_quantizer = nn.Identity()  # type: ignore[assignment]
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        output, expected = student(images), network(images)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)


def test_a_fresh_student_passes_activations_and_is_in_evaluation_mode() -> None:
    student = convert(resnet8(), SETTINGS)
    assert all(q.mode is ActivationMode.FLOAT for q in activation_quantizers(student))
    assert not any(module.training for module in student.modules())


@pytest.mark.parametrize(
    ("layers", "missing"),
    [
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], "activation function"),
        ([nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)], "activation function"),
        ([nn.BatchNorm2d(3), nn.ReLU()], "convolution or linear layer"),
    ],
)
def test_a_network_with_nothing_to_quantize_is_refused(
    layers: list[nn.Module], missing: str
) -> None:
    with pytest.raises(ModelError, match=rf"no {missing}.*nothing to quantize"):
        convert(nn.Sequential(*layers), SETTINGS)


def test_a_network_that_cannot_be_traced_is_refused_with_the_place() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"Branching cannot be traced .* at test_convert\.py"):
        convert(Branching(), SETTINGS)


class Multiplying(nn.Module):
    """Multiplies vectors of three by a parameter, or by what is made of it."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.multiply = nn.Linear(3, 3), multiply
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.first(x).relu(), self.weight)


PRODUCTS: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(lambda x, w: x @ w, lambda x, w: x @ w.t(), lambda x, w: torch.matmul(x, w[:, :2] * 2)),
    *(lambda x, w: torch.einsum("ni,oi->no", x, w.exp()), lambda x, w: x.mm(w.transpose(0, 1))),
]


@pytest.mark.parametrize("multiply", PRODUCTS, ids=range(len(PRODUCTS)))
def test_products_with_a_parameter_outside_of_layers_are_refused(
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> None:
    with pytest.raises(ModelError, match="whose weights belong to no layer"):
        convert(Multiplying(multiply).eval(), SETTINGS)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell, nn.GRU])
def test_recurrent_layers_and_cells_are_refused_by_their_names(
    kind: Callable[[int, int], nn.Module],
) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.recurrent = nn.Linear(3, 3), kind(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer = self.recurrent(self.first(x).relu())
            return answer[0] if isinstance(self.recurrent, nn.LSTMCell | nn.GRU) else answer

    with pytest.raises(ModelError, match=r"layer recurrent is a .*, which cannot be quantized"):
        convert(Recurrent().eval(), SETTINGS)
