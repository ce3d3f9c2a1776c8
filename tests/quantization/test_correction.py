from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, fx, nn

from hast_lightning.graph.tracing import trace
from hast_lightning.quantization import correction
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.correction import (
    correct_biases,
    correct_by_statistics,
    give_biases,
    mean_shift,
    rectified_mean,
    reestimate_batch_norms,
    told_by_batch_norms,
)
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    freeze_ranges,
    recalibrate,
    set_activation_mode,
)
from hast_lightning.quantization.settings import QuantizerConfig

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.norm2(self.second(x)))
        return self.head(x.mean((2, 3)))


def teacher() -> fx.GraphModule:
    torch.manual_seed(0)
    network = Network().train()
    for _ in range(20):
        network(IMAGES + 0.3)
    return trace(network.eval())


def student(bits: int, *, quantizes: bool = True) -> fx.GraphModule:
    made = convert(teacher(), QuantizerConfig(bits=bits))
    if quantizes:
        set_activation_mode(made, ActivationMode.OBSERVE)
        with torch.no_grad():
            made(IMAGES)
        freeze_ranges(made)
    return made


def test_a_student_that_does_not_quantize_stays_as_it_is_bit_for_bit() -> None:
    float_student = teacher()
    before = copy.deepcopy(float_student.state_dict())
    assert reestimate_batch_norms(float_student, teacher(), IMAGES) == 2
    assert correct_biases(float_student, teacher(), IMAGES) == 1
    for name, value in float_student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_statistics_move_by_what_quantizing_does_layer_by_layer() -> None:
    made, of_teacher = student(2), teacher()
    reestimate_batch_norms(made, of_teacher, IMAGES)
    with torch.no_grad():
        value_t = of_teacher.get_submodule("first")(IMAGES)
        value_s = made.get_submodule("first")(IMAGES)
    norm_t, norm_s = of_teacher.get_submodule("norm"), made.get_submodule("norm")
    difference = value_s.mean((0, 2, 3)) - value_t.mean((0, 2, 3))
    expected = norm_t.running_mean + difference  # type: ignore[operator]
    assert torch.allclose(norm_s.running_mean, expected, atol=1e-5)  # type: ignore[arg-type]
    ratio = value_s.var((0, 2, 3), correction=0) / value_t.var((0, 2, 3), correction=0)
    expected = norm_t.running_var * ratio  # type: ignore[operator]
    assert torch.allclose(norm_s.running_var, expected, rtol=1e-4)  # type: ignore[arg-type]


def moments_behind(network: fx.GraphModule, layer: str) -> tuple[Tensor, Tensor]:
    found = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *a: found.append(a[2]))
    with torch.no_grad():
        network(IMAGES)
    handle.remove()
    return found[0].mean((0, 2, 3)), found[0].var((0, 2, 3), correction=0)


def test_corrected_norms_put_out_the_teachers_moments_also_behind_corrected_layers() -> None:
    made, of_teacher = student(2), teacher()
    reestimate_batch_norms(made, of_teacher, IMAGES)
    for layer in ("norm", "norm2"):
        (mean_s, var_s), (mean_t, var_t) = (moments_behind(n, layer) for n in (made, of_teacher))
        assert torch.allclose(mean_s, mean_t, atol=0.02), layer
        assert torch.allclose(var_s, var_t, rtol=0.05), layer


def test_a_channel_that_does_not_vary_keeps_the_teachers_variance() -> None:
    of_teacher = teacher()
    with torch.no_grad():
        of_teacher.get_submodule("first").weight[0] = 0  # type: ignore[index,union-attr]
    made = convert(of_teacher, QuantizerConfig(bits=2))
    reestimate_batch_norms(made, of_teacher, IMAGES)
    norm = made.get_submodule("norm")
    assert bool(norm.running_var.isfinite().all())  # type: ignore[operator,union-attr]
    assert norm.running_var[0] == of_teacher.get_submodule("norm").running_var[0]  # type: ignore[index,union-attr]


def test_the_mean_error_of_a_layer_without_batch_norm_is_gone() -> None:
    made, of_teacher = student(2), teacher()
    assert correct_biases(made, of_teacher, IMAGES) == 1
    with torch.no_grad():
        error = (made(IMAGES) - of_teacher(IMAGES)).mean(0)
    assert float(error.abs().max()) < 1e-5


# --- what BatchNorms say ---------------------------------------------------------------------


@pytest.mark.parametrize("highest", [math.inf, 6.0])
def test_the_mean_behind_an_activation_is_that_of_many_draws(highest: float) -> None:
    mean, deviation = torch.tensor([-1.0, 0.0, 2.0, 5.5, 9.0]), torch.tensor([1.0, 2, 1, 3, 0.5])
    drawn = torch.randn(200_000, 5, generator=torch.Generator().manual_seed(0))
    expected = (mean + deviation * drawn).clamp(0, highest).mean(0).double()
    assert torch.allclose(rectified_mean(mean, deviation, highest), expected, atol=0.02)


def test_a_channel_that_does_not_vary_has_the_mean_that_it_is() -> None:
    found = rectified_mean(torch.tensor([2.0, -2.0, 7.0]), torch.zeros(3), 6.0)
    assert found.tolist() == [2.0, 0.0, 6.0]


def test_the_mean_of_an_output_is_the_sum_of_the_kernels_times_the_means() -> None:
    error, means = torch.randn(4, 2, 3, 3).double(), torch.randn(4).double()
    expected = [
        sum(float(error[o, i].sum() * means[o // 2 * 2 + i]) for i in range(2)) for o in range(4)
    ]
    assert torch.allclose(mean_shift(error, means), torch.tensor(expected).double())  # type: ignore[arg-type]
    assert mean_shift(error, torch.randn(3).double()) is None


def test_means_are_told_behind_batch_norms_and_averages_and_nowhere_else() -> None:
    means = {node.name: told.mean for node, told in told_by_batch_norms(teacher()).items()}
    assert {name for name in means if "first" in name or name == "x"} == set()
    norm = teacher().get_submodule("norm")
    assert torch.equal(means["norm"], norm.bias.detach().double())  # type: ignore[union-attr,operator]
    assert {"norm", "relu", "norm2", "relu_1", "mean"} <= set(means)


class Shifting(nn.Module):
    """A layer behind a ReLU whose inputs are as its BatchNorm says."""

    def __init__(self, *, norm_behind: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 1)
        self.norm2 = nn.BatchNorm2d(8) if norm_behind else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.second(torch.relu(self.norm(self.first(x)))))


@pytest.mark.parametrize("norm_behind", [False, True])
def test_the_mean_error_is_less_without_a_sample(norm_behind: bool) -> None:
    torch.manual_seed(0)
    network = Shifting(norm_behind=norm_behind).train()
    images = torch.randn(512, 3, 4, 4)
    with torch.no_grad():
        network.norm.bias.uniform_(-1, 2)
    for _ in range(200):
        network(images)
    of_teacher = trace(network.eval())
    made = convert(of_teacher, QuantizerConfig(weight_bits=2, activation_bits=8))
    # What is before the layer is to be as in the teacher.
    made.first.weight_quantizer = nn.Identity()  # type: ignore[union-attr,assignment]

    def error() -> float:
        with torch.no_grad():
            difference = made(images) - of_teacher(images)
        return float(difference.mean((0, 2, 3)).abs().mean())

    before = error()
    made_again = copy.deepcopy(made)
    del made.first.weight_quantizer  # type: ignore[union-attr]
    made.first = of_teacher.get_submodule("first")
    assert correct_by_statistics(made, of_teacher) == 1
    assert error() < 0.25 * before
    made_again.first = of_teacher.get_submodule("first")
    skipped = {"batch_norms": not norm_behind, "biases": norm_behind}
    assert correct_by_statistics(made_again, of_teacher, **skipped) == 0


def test_means_that_are_corrected_once_more_stay_where_they_are() -> None:
    made, of_teacher = student(2), teacher()
    assert correct_by_statistics(made, of_teacher) == 2
    once = copy.deepcopy(made.state_dict())
    correct_by_statistics(made, of_teacher, biases=False)
    for name, value in made.state_dict().items():
        assert torch.equal(value, once[name]), name


def test_statistics_leave_a_student_that_does_not_quantize_as_it_is() -> None:
    float_student = teacher()
    assert correct_by_statistics(float_student, teacher()) == 0


def test_moments_of_two_processes_are_those_of_all_their_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = torch.randn(8, 3, 4, 4), 2 * torch.randn(8, 3, 4, 4) + 5
    own = [part.transpose(0, 1).flatten(1) for part in parts]
    everything = torch.cat(own, dim=1)
    mean, var = everything.mean(1), everything.var(1, correction=0)
    # What the other process would say: its mean, and how far its values are from that of all.
    others = iter([own[1].mean(1), (own[1] - mean[:, None]).square().mean(1)])
    monkeypatch.setattr(correction, "averaged", lambda mine: (mine + next(others)) / 2)
    found = correction.channel_moments(parts[0])
    torch.testing.assert_close(found, (mean, var))


class Plain(nn.Module):
    """Layers without biases, one of which has no BatchNorm behind it, and arguments by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(input=self.first(x)))
        return self.head(input=x.mean((2, 3)))  # type: ignore[no-any-return]


def test_biases_that_are_missing_are_zeros_from_the_beginning() -> None:
    """A student that is built anew, as to go on with a run, has to take up a corrected one."""
    torch.manual_seed(0)
    network = trace(Plain().eval())

    def built() -> fx.GraphModule:
        made = convert(network, QuantizerConfig(bits=3))
        give_biases(made, network)
        return made

    made, anew = built(), built()
    recalibrate(made, [IMAGES])
    assert torch.equal(made.get_parameter("head.bias"), torch.zeros(4))
    assert made.get_submodule("first").bias is None
    before = (made(IMAGES) - network(IMAGES)).mean(0).norm()
    assert reestimate_batch_norms(made, network, IMAGES) == 1
    assert correct_biases(made, network, IMAGES) == 1
    assert (made(IMAGES) - network(IMAGES)).mean(0).norm() < 1e-3 * before
    anew.load_state_dict(made.state_dict())


@pytest.mark.parametrize("by_channel", [True, False])
def test_a_linear_layer_over_places_is_told_nothing(by_channel: bool) -> None:
    torch.manual_seed(0)
    # As many places as channels.
    layers = (nn.Conv2d(3, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU())
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten()) if by_channel else (nn.Flatten(2),)
    network = trace(nn.Sequential(*layers, *pooled, nn.Linear(16, 5)).eval())
    made = convert(network, QuantizerConfig(bits=2))
    assert correct_by_statistics(made, network) == int(by_channel)


VECTORS = {
    "linear, then an activation": (nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.BatchNorm1d(8)),
    "linear, then dropout": (nn.Flatten(), nn.Linear(192, 8), nn.Dropout(), nn.BatchNorm1d(8)),
    "pooled": (nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8)),
}


@pytest.mark.parametrize("layers", VECTORS.values(), ids=VECTORS)
def test_a_linear_layer_behind_vectors_is_told_their_means(layers: tuple[nn.Module, ...]) -> None:
    network = trace(nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 5)).eval())
    made = convert(network, QuantizerConfig(bits=2))
    # The layer in front takes in nothing that is told.
    assert correct_by_statistics(made, network) == 1
