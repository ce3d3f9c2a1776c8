"""Learned step sizes as parts of a student: where they start, how they train, how they are kept."""

from __future__ import annotations

import copy
import math
import statistics

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    WeightQuantizer,
    activation_quantizers,
    freeze_ranges,
    held_weights,
    quantized_layers,
    set_activation_mode,
)
from hast_lightning.quantization.learned import (
    LR_MULTIPLIER,
    LSQ,
    LearnedActivationQuantizer,
    LearnedWeightQuantizer,
    parameter_groups,
    step_parameters,
)
from hast_lightning.quantization.lsq import gradient_scale, learned_fake_quantize
from hast_lightning.quantization.ranges import affine_parameters
from hast_lightning.quantization.search import least_squares
from hast_lightning.quantization.settings import QuantizerConfig

SETTINGS = QuantizerConfig(3, ranges=LSQ(), gradient="clipped")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scales(student: nn.Module) -> list[Tensor]:
    """Of activations and of weights."""
    found = [quantizer.scale for quantizer in activation_quantizers(student)]
    return found + [
        layer.weight_quantizer.parameters_of(layer.weight).scale
        for _, layer in quantized_layers(student)
    ]


def student_of(settings: QuantizerConfig = SETTINGS) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(36, 5)),
    )
    return convert(network.eval(), settings)


def calibrated(settings: QuantizerConfig = SETTINGS) -> nn.Module:
    student = student_of(settings)
    set_activation_mode(student, ActivationMode.OBSERVE)
    with torch.no_grad():
        student(noise(8, 2, 5, 5))
    freeze_ranges(student)
    return student


# --- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weights_start_where_the_squared_error_is_least(bits: int) -> None:
    weight = noise(4, 3, 3, 3)
    learned = LearnedWeightQuantizer(bits, weight)
    searched = WeightQuantizer(bits, symmetric=True, find=least_squares)
    assert torch.equal(learned(weight), searched(weight))
    assert learned.relative_step_size.shape == (4, 1, 1, 1)
    for mine, theirs in zip(
        learned.parameters_of(weight), searched.parameters_of(weight), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_the_step_of_weights_does_not_follow_the_weights() -> None:
    weight = noise(4, 6)
    quantizer = LearnedWeightQuantizer(3, weight)
    before = quantizer.parameters_of(weight)
    after = quantizer.parameters_of(10 * weight)
    assert torch.equal(before.scale, after.scale)
    assert quantizer(10 * weight).max() <= 3 * before.scale.max()


def test_a_channels_gradient_is_scaled_by_its_own_number_of_weights() -> None:
    weight = noise(2, 18)
    quantizer = LearnedWeightQuantizer(3, weight)
    quantizer(100 + weight.abs()).sum().backward()  # all beyond the range: Qp each
    gradient = quantizer.relative_step_size.grad
    assert gradient is not None
    of_step_size = torch.full((2, 1), 18 * 3 / math.sqrt(18 * 3))
    torch.testing.assert_close(gradient * quantizer.first_step_size, of_step_size)


# --- activations -----------------------------------------------------------------------------


def test_parameters_exist_before_calibration_and_only_their_values_change() -> None:
    student = student_of()
    before = {id(parameter) for parameter in student.parameters()}
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    set_activation_mode(student, ActivationMode.OBSERVE)
    student(noise(8, 2, 5, 5))
    freeze_ranges(student)
    assert {id(parameter) for parameter in student.parameters()} == before


def test_uncalibrated_they_give_no_plausible_numbers() -> None:
    quantizer = LearnedActivationQuantizer(3)
    assert quantizer.scale.isnan()
    quantizer.mode = ActivationMode.QUANTIZE
    assert quantizer(noise(2, 3)).isnan().all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (-0.3, 1.5), (-3.0, -1.0)])
@pytest.mark.parametrize("include_zero", [False, True])
def test_calibration_is_where_they_start(low: float, high: float, include_zero: bool) -> None:
    quantizer = LearnedActivationQuantizer(4, include_zero=include_zero)
    ends = torch.tensor(low), torch.tensor(high)
    quantizer.set_range(*ends)
    scale, zero_point = affine_parameters(*ends, 4, include_zero)
    assert (quantizer.scale, quantizer.zero_point) == (scale, zero_point)
    assert not quantizer.scale.requires_grad
    assert not quantizer.zero_point.requires_grad
    assert quantizer.scale.shape == quantizer.zero_point.shape == ()


def test_activations_of_both_signs_learn_an_offset_and_others_do_not() -> None:
    student = calibrated()
    relu, silu = activation_quantizers(student)
    student(noise(4, 2, 5, 5, seed=1)).square().sum().backward()
    assert isinstance(relu, LearnedActivationQuantizer)
    assert isinstance(silu, LearnedActivationQuantizer)
    assert relu.relative_step_size.grad != 0
    assert relu.relative_offset.grad is None
    assert relu.zero_point == 0
    assert silu.relative_step_size.grad != 0
    assert silu.relative_offset.grad != 0


def test_the_gradient_does_not_depend_on_how_many_images_are_averaged() -> None:
    quantizer = LearnedActivationQuantizer(3)
    quantizer.set_range(torch.tensor(0.0), torch.tensor(1.0))
    images = 2 * noise(4, 7).abs()
    found = []
    for batch in (images, images.repeat(3, 1)):
        quantizer.relative_step_size.grad = None
        quantizer(batch).square().sum(1).mean().backward()
        found.append(quantizer.relative_step_size.grad)
    torch.testing.assert_close(*found)


def test_a_zero_point_stays_an_integer_while_the_offset_moves() -> None:
    quantizer = LearnedActivationQuantizer(3)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    before, x = float(quantizer.zero_point), noise(8, 20) - 1.5
    optimizer = SGD(quantizer.parameters(), lr=0.02)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        error = (quantizer(x) - x).square().sum()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
        assert quantizer.zero_point == quantizer.zero_point.round()
    assert quantizer.zero_point > before  # the range has moved down to the values
    assert errors[-1] < 0.5 * errors[0]


# --- training --------------------------------------------------------------------------------


def test_an_optimizer_that_pushes_below_zero_leaves_scales_positive() -> None:
    student = calibrated()
    images = noise(4, 2, 5, 5, seed=1)
    optimizer = SGD(step_parameters(student), lr=1e4)
    student(images).sum().backward()
    optimizer.step()
    assert any((parameter < 0).any() for parameter in step_parameters(student))
    assert all((scale > 0).all() for scale in scales(student))
    assert student(images).isfinite().all()


@pytest.mark.parametrize("bits", [3, 8])
def test_adam_moves_every_step_size_by_the_rate_at_most(bits: int) -> None:
    """In proportion: an absolute rate of 0.01 would make most at 8 bits another in one step."""
    student = calibrated(QuantizerConfig(bits, ranges=LSQ(), gradient="clipped"))
    before = scales(student)
    optimizer = Adam(step_parameters(student), lr=0.01)
    student(noise(4, 2, 5, 5, seed=1)).square().sum().backward()
    optimizer.step()
    for first, then in zip(before, scales(student), strict=True):
        assert (then / first - 1).abs().max() <= 0.0101
    assert any((then != first).any() for first, then in zip(before, scales(student), strict=True))


def test_sgd_moves_a_step_size_as_in_the_paper() -> None:
    weight, upstream, rate = noise(2, 18), noise(2, 18, seed=1), 0.003
    quantizer = LearnedWeightQuantizer(3, weight)
    plain = quantizer.first_step_size.clone().requires_grad_()
    zero_point = torch.full((2, 1), 4.0)
    (learned_fake_quantize(weight, plain, zero_point, 3) * upstream).sum().backward()
    assert plain.grad is not None
    expected = plain.detach() - rate * gradient_scale(18, 3) * plain.grad
    (quantizer(weight) * upstream).sum().backward()
    SGD(quantizer.parameters(), lr=rate).step()
    torch.testing.assert_close(quantizer.parameters_of(weight).scale, expected)


def test_learning_the_steps_alone_brings_the_student_closer_to_the_network() -> None:
    student = calibrated()
    reference = copy.deepcopy(student)
    for _, layer in quantized_layers(reference):
        layer.weight_quantizer = nn.Identity()  # type: ignore[assignment]
    set_activation_mode(reference, ActivationMode.FLOAT)
    images = noise(64, 2, 5, 5, seed=2)
    expected = reference(images).detach()
    optimizer = Adam(step_parameters(student), lr=3e-3)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        with held_weights(student):
            error = (student(images) - expected).square().mean()
            error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    # Rounded values jump, and the error with them.
    assert statistics.mean(errors[-10:]) < 0.92 * errors[0]


# --- parameter groups ------------------------------------------------------------------------


def test_step_sizes_are_a_group_without_weight_decay() -> None:
    student = student_of(QuantizerConfig(3, ranges=LSQ(lr_multiplier=0.5)))
    others, steps = parameter_groups(student, 1e-4)
    assert (others["weight_decay"], LR_MULTIPLIER in others) == (1e-4, False)
    assert (steps["weight_decay"], steps[LR_MULTIPLIER]) == (0.0, 0.5)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    learned = {names[id(parameter)] for parameter in steps["params"]}
    endings = ("relative_step_size", "relative_offset")
    assert learned == {name for name in names.values() if name.endswith(endings)}
    assert len(learned) == 3 + 2 * 2
    assert len(others["params"]) + len(steps["params"]) == len(names)


def test_a_student_that_learns_no_steps_is_one_group_in_its_own_order() -> None:
    student = student_of(QuantizerConfig(3))
    (group,) = parameter_groups(student, 1e-4)
    assert list(map(id, group["params"])) == list(map(id, student.parameters()))
    assert step_parameters(student) == []


def test_weight_decay_leaves_step_sizes_alone() -> None:
    student = calibrated()
    steps = {name: p.clone() for name, p in student.named_parameters() if "step_size" in name}
    weights = {n: p.clone() for n, p in student.named_parameters() if n.endswith("weight")}
    optimizer = SGD(parameter_groups(student, 0.1), lr=0.1)
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(student.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in steps.items())
    assert not any(torch.equal(after[name], value) for name, value in weights.items())
