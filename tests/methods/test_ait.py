"""AIT's step against a plain optimizer that does the same, its pitfalls, and the method itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, optim

from hast_lightning.methods.ait import (
    ChangedShare,
    GradientInundation,
    find_multiplier,
    step_at_rate_one,
)
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.quantization.learned import parameter_groups
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.stages.alternate import Alternate
from hast_lightning.training.module import ZeroShotQuantization
from tests.small_calls import digits_network
from tests.small_runs import build_module, fit, small

BITS, RATE, MOMENTUM = 3, 1e-4, 0.9


class PlainStepper:
    """A stepper without a trainer."""

    def __init__(self, optimizer: optim.Optimizer, scaled: bool = False) -> None:
        self.optimizers: Mapping[str, optim.Optimizer] = {"student": optimizer}
        self.scaled = scaled

    def zero_grad(self) -> None:
        raise AssertionError

    backward = unscale = step = scalars = zero_grad  # type: ignore[assignment]


def student_of(bits: int = BITS) -> torch.fx.GraphModule:
    return convert(digits_network(), QuantizerConfig(bits=bits))


def bound_hook(**settings: Any) -> GradientInundation:
    hook = GradientInundation(**settings)
    hook.bind(None)  # type: ignore[arg-type]
    return hook


def sgd(hook: GradientInundation, student: nn.Module, decay: float = 0.0) -> optim.SGD:
    groups = hook.groups(student, parameter_groups(student, decay))
    return optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True)


def draw_gradients(student: nn.Module, step: int, size: float = 1e-3) -> None:
    stream = torch.Generator().manual_seed(step)
    for parameter in student.parameters():
        parameter.grad = size * torch.randn(parameter.shape, generator=stream)


# -- A reference in plain numpy, written from what the released optimizer does ------------------


def codes(weight: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Integers of every weight between its channel's minimum and maximum."""
    rows = weight.reshape(len(weight), -1)
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    scale = (high - low) / (2**bits - 1)
    return np.clip(np.round(rows / scale) + np.round(-low / scale), 0, 2**bits - 1)


def reference_multiplier(
    share: Callable[[float], float], target: float, halvings: int, capped: bool
) -> float:
    alpha = 1.0
    if share(alpha) >= target:
        return alpha
    while True:
        alpha *= 2
        if share(alpha) >= target:
            break
        if capped and alpha > 100:
            break
    start, end = alpha / 2, alpha
    for _ in range(halvings):
        middle = (start + end) / 2
        if abs(share(middle) - target) < target / 100:
            break
        if share(middle) < target:
            start = middle
        else:
            end = middle
    return middle


class ReferenceOptimizer:
    """Nesterov's momentum, whose step on weights is multiplied; the momentum is not."""

    def __init__(self, weights: set[str], capped_steps: int) -> None:
        self.weights, self.capped_steps, self.steps = weights, capped_steps, 0
        self.buffers: dict[str, NDArray[np.float64]] = {}

    def directions(self, gradients: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
        found = {}
        for name, gradient in ((n, g.double().numpy()) for n, g in gradients.items()):
            moved = MOMENTUM * self.buffers[name] + gradient if name in self.buffers else gradient
            self.buffers[name] = moved
            found[name] = gradient + MOMENTUM * moved
        return found

    def multipliers(
        self,
        values: Mapping[str, NDArray[np.float64]],
        directions: Mapping[str, NDArray[np.float64]],
        rate: float,
        target: float,
    ) -> dict[str, float]:
        found = {}
        for name in self.weights:
            value, direction, before = values[name], directions[name], codes(values[name], BITS)

            def share(m: float, v: Any = value, d: Any = direction, c: Any = before) -> float:
                return float((codes(v - m * rate * d, BITS) != c).mean())

            capped = self.steps < self.capped_steps
            found[name] = reference_multiplier(share, target, 5, capped)
        self.steps += 1
        return found


def test_weights_move_as_with_the_released_optimizer_for_several_steps() -> None:
    """The momentum is not multiplied; only weights of layers are; ranges move with the weights."""
    student = student_of()
    hook = bound_hook(target=0.01, first_limit=100.0, first_steps=2)
    optimizer = sgd(hook, student)
    reference = ReferenceOptimizer({f"{name}.weight" for name, _ in quantized_layers(student)}, 2)
    highest = []
    for step, size in enumerate((0.005, 0.005, 0.005, 0.2)):
        draw_gradients(student, step, size)
        rate = RATE * (1.0 if step < 3 else 0.1)
        parameters = dict(student.named_parameters())
        before = {n: p.detach().double().numpy().copy() for n, p in parameters.items()}
        directions = reference.directions({n: p.grad for n, p in parameters.items()})  # type: ignore[misc]
        expected = reference.multipliers(before, directions, rate, 0.01 * rate / RATE)
        for group in optimizer.param_groups:
            group["lr"] = rate
        hook(student, PlainStepper(optimizer), rate)
        optimizer.step()
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        alike = []
        for name, parameter in parameters.items():
            multiplier = rates[id(parameter)] / rate
            # A weight on the edge between two integers is rounded otherwise in float32.
            assert multiplier == pytest.approx(expected.get(name, 1.0), rel=0.1)
            alike.append(multiplier == pytest.approx(expected.get(name, 1.0)))
            after = before[name] - multiplier * rate * directions[name]
            torch.testing.assert_close(parameter.detach(), torch.from_numpy(after).float())
            momentum = torch.from_numpy(reference.buffers[name]).float()
            torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], momentum)
        assert sum(alike) >= 0.9 * len(alike)
        highest.append(max(expected.values()))
    assert highest[0] == 126
    assert highest[2] > 126
    assert 1 < highest[3] < 100


def test_the_share_that_changes_is_near_the_target() -> None:
    student, hook = student_of(), bound_hook(target=0.001, first_steps=0)
    optimizer = sgd(hook, student)
    draw_gradients(student, 0)
    before = {name: layer.weight.detach().clone() for name, layer in quantized_layers(student)}
    found = hook(student, PlainStepper(optimizer), RATE)
    optimizer.step()
    changed = total = 0
    for name, layer in quantized_layers(student):
        old, new = (w.double().numpy() for w in (before[name], layer.weight.detach()))
        changed += int((codes(old, BITS) != codes(new, BITS)).sum())
        total += old.size
    assert found["changed_integers"] == pytest.approx(changed / total, abs=1 / total)
    assert changed / total == pytest.approx(0.001, rel=0.2)


def test_weights_of_one_bit_change_where_their_signs_do() -> None:
    student = convert(digits_network(), QuantizerConfig(weight_bits=1, activation_bits=8))
    (_, layer), *_ = quantized_layers(student)
    changed = ChangedShare(layer, 2 * layer.weight.detach())
    assert changed(0.0) == 0
    assert changed(1.0) == 1


# -- The search -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 100.0])
@pytest.mark.parametrize("threshold", [0.5, 1.0, 3.3, 17.0, 90.0, 99.0])
def test_the_search_doubles_and_bisects_as_released(threshold: float, limit: float | None) -> None:
    for share in (
        lambda m: float(m >= threshold),  # all at once
        lambda m: 0.001 * m / threshold,  # in proportion
        lambda m: 0.002 * abs(np.sin(m / threshold)),  # up and down
    ):
        expected = reference_multiplier(share, 0.001, 5, limit is not None)
        assert find_multiplier(share, 0.001, 5, limit) == expected


def test_a_step_that_changes_enough_is_left_as_it_is() -> None:
    assert find_multiplier(lambda m: 0.5, 0.001, 5) == 1


def test_in_the_first_steps_doubling_ends_above_the_limit() -> None:
    """64 is within the limit of 100, 128 is not; bisection then goes up from 64 towards 128."""
    tried = []

    def never(multiplier: float) -> float:
        tried.append(multiplier)
        return 0.0

    assert find_multiplier(never, 0.001, 5, 100.0) == 126
    assert tried == [1, 2, 4, 8, 16, 32, 64, 128, 96, 112, 120, 124, 126]


def test_what_no_multiplier_moves_is_left_as_it_is_and_ends() -> None:
    """The released search never ends here, or ends at infinity."""
    assert find_multiplier(lambda m: 0.0, 0.001, 5) == 1


def test_a_tensor_without_a_gradient_of_its_own_stays_finite() -> None:
    student, hook = student_of(), bound_hook(first_steps=0)
    optimizer = sgd(hook, student)
    draw_gradients(student, 0)
    (_, first), *_ = quantized_layers(student)
    assert first.weight.grad is not None
    first.weight.grad.zero_()
    before = first.weight.detach().clone()
    hook(student, PlainStepper(optimizer), RATE)
    optimizer.step()
    assert torch.equal(first.weight, before)
    assert all(bool(p.isfinite().all()) for p in student.parameters())


# -- The step that is scaled --------------------------------------------------------------------


OPTIMIZERS: dict[str, Callable[[list[Tensor]], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.01),
    "plain sgd": lambda p: optim.SGD(p, lr=1.0),
    "adam": lambda p: optim.Adam(p, lr=1.0, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=1.0, weight_decay=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_step_is_the_optimizers_own_and_trying_it_leaves_nothing_behind(
    make: Callable[[list[Tensor]], optim.Optimizer],
) -> None:
    stream = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(5, 7, generator=stream))
    optimizer = make([parameter])
    for _ in range(3):
        parameter.grad = torch.randn(5, 7, generator=stream)
        before, state = parameter.detach().clone(), copy.deepcopy(optimizer.state_dict())
        step = step_at_rate_one(optimizer, optimizer.param_groups[0], parameter)
        assert torch.equal(parameter, before)
        after = optimizer.state_dict()
        assert after["param_groups"] == state["param_groups"]
        assert str(after["state"]) == str(state["state"])
        optimizer.step()
        torch.testing.assert_close(before - parameter.detach(), step, rtol=1e-4, atol=1e-5)


def test_a_step_far_smaller_than_the_weights_keeps_its_digits() -> None:
    """A weight of one resolves 1e-7 in float32; multiplied a thousand times that would show."""
    parameter = nn.Parameter(torch.ones(4))
    parameter.grad = torch.tensor([1e-7, 2e-7, 3e-7, -1.7e-7])
    optimizer = optim.SGD([parameter], lr=1.0)
    step = step_at_rate_one(optimizer, optimizer.param_groups[0], parameter)
    torch.testing.assert_close(step, parameter.grad, rtol=1e-4, atol=0)


# -- The hook -----------------------------------------------------------------------------------


def test_every_weight_of_a_layer_is_a_group_of_its_own_and_all_others_stay_together() -> None:
    student = student_of()
    groups = bound_hook().groups(student, parameter_groups(student, 0.01))
    weights = [layer.weight for _, layer in quantized_layers(student)]
    assert [id(group["params"][0]) for group in groups[1:]] == [id(w) for w in weights]
    assert all(len(group["params"]) == 1 and group["weight_decay"] == 0.01 for group in groups[1:])
    everything = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in everything} == {id(p) for p in student.parameters()}
    assert len(everything) == len(list(student.parameters()))


def test_learned_step_sizes_keep_their_group() -> None:
    config = small("method=ait", "quantizer=lsq")
    student = convert(digits_network(), config.quantizer)
    given = parameter_groups(student, 0.01)
    groups = bound_hook().groups(student, given)
    assert groups[1] == given[1]


def test_the_target_falls_with_the_learning_rate() -> None:
    """A tenth of the rate has a tenth of the target: the released epochs of both are the same."""
    found = []
    for rate in (RATE, RATE / 10):
        student, hook = student_of(), bound_hook(target=0.1, first_steps=0)
        optimizer = sgd(hook, student)
        draw_gradients(student, 0, size=0.01)
        found.append(hook(student, PlainStepper(optimizer), rate)["changed_integers"])
    assert found[0] == pytest.approx(0.1, rel=0.1)
    assert found[1] == pytest.approx(0.01, rel=0.3)


def test_nothing_is_left_behind_by_a_step_that_is_left_out() -> None:
    """In float16 a gradient may be infinite, and the stepper leaves the step out."""
    student, hook = student_of(), bound_hook()
    optimizer = sgd(hook, student)
    draw_gradients(student, 0)
    hook(student, PlainStepper(optimizer, scaled=True), RATE)
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = RATE
    draw_gradients(student, 1)
    bias = next(p for p in student.parameters() if p.dim() == 1)
    assert bias.grad is not None
    bias.grad[0] = float("inf")
    state = copy.deepcopy(optimizer.state_dict())
    assert hook(student, PlainStepper(optimizer, scaled=True), RATE) == {}
    assert int(hook.steps) == 1
    assert str(optimizer.state_dict()) == str(state)


def test_the_same_gradients_twice_are_scaled_alike() -> None:
    """Multipliers do not add up where the rate is not set anew in between."""
    student, hook = student_of(), bound_hook()
    optimizer = sgd(hook, student)
    draw_gradients(student, 0)
    first = hook(student, PlainStepper(optimizer), RATE)
    assert hook(student, PlainStepper(optimizer), RATE) == first


# -- The method -------------------------------------------------------------------------------


def hook_of(module: ZeroShotQuantization) -> GradientInundation:
    stage = module.stages[list(module.stages)[-1]]
    hook = stage.distillation.hook if isinstance(stage, Alternate) else stage.hook  # type: ignore[attr-defined]
    assert isinstance(hook, GradientInundation)
    return hook


@pytest.mark.parametrize(
    ("method", "stage"),
    [("ait", "stages.alternation.distillation"), ("ait_bank", "stages.distillation")],
)
def test_it_runs_on_a_generator_and_on_a_bank(method: str, stage: str) -> None:
    constant = "schedule.learning_rate=constant"
    module = build_module(small(f"method={method}", f"{stage}.hook.first_steps=0", constant))
    before = {n: layer.weight.detach().clone() for n, layer in quantized_layers(module.student)}
    fit(module)
    assert int(hook_of(module).steps) == 3
    assert module.outcome.scalars["distillation/changed_integers"] == pytest.approx(1e-3, rel=0.5)
    for name, layer in quantized_layers(module.student):
        assert bool(layer.weight.isfinite().all())
        assert not torch.equal(layer.weight, before[name])


def test_the_student_learns_from_answers_alone_and_without_decay() -> None:
    for method, stage in (("ait", "alternation"), ("ait_bank", "distillation")):
        config = small(f"method={method}")
        terms = config.stages[stage].all_terms
        names = [name for group in terms.values() for name in group]
        assert names[-1] == "kd"
        assert not {"alignment"} & set(names)
        assert "cross_entropy" not in list(terms.values())[-1]
        distillation = getattr(config.stages[stage], "distillation", config.stages[stage])
        assert distillation.optimizer.weight_decay == 0
