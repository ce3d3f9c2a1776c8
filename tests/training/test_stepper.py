"""Named optimizers that step together, with and without a loss scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hast_lightning.runtime.loss_scaling import LEAST_SCALE, LossScaling
from hast_lightning.training.stepper import TrainerStepper


class Strategy:
    """Steps as Lightning's does, without a trainer."""

    def __init__(self, plugin: LossScaling | None) -> None:
        self.plugin = plugin
        if plugin is not None:
            # It calls the hooks of a module that is none here.
            plugin._after_closure = lambda *_: None  # type: ignore[method-assign]

    def optimizer_step(self, optimizer: torch.optim.Optimizer, closure: Any) -> None:
        if self.plugin is None:
            optimizer.step(closure)
        else:
            self.plugin.optimizer_step(optimizer, None, closure)  # type: ignore[arg-type]


def stepper(parameters: dict[str, nn.Parameter], plugin: LossScaling | None) -> TrainerStepper:
    def backward(loss: torch.Tensor) -> None:
        (loss if plugin is None else plugin.scaler.scale(loss)).backward()

    trainer = SimpleNamespace(precision_plugin=plugin, strategy=Strategy(plugin))
    module = SimpleNamespace(trainer=trainer, manual_backward=backward)
    optimizers = {
        name: torch.optim.SGD([parameter], lr=1.0, momentum=0.5)
        for name, parameter in parameters.items()
    }
    return TrainerStepper(module, "any", optimizers)  # type: ignore[arg-type]


def parameters() -> dict[str, nn.Parameter]:
    return {"first": nn.Parameter(torch.tensor(3.0)), "second": nn.Parameter(torch.tensor(5.0))}


@pytest.mark.parametrize("scaled", [False, True])
def test_all_optimizers_step_by_the_gradient_of_one_loss(scaled: bool) -> None:
    held = parameters()
    made = stepper(held, LossScaling("cpu") if scaled else None)
    assert made.scaled == scaled
    for _ in range(2):
        made.zero_grad()
        made.backward(held["first"] + 2 * held["second"])
        made.unscale()
        gradients = [float(parameter.grad) for parameter in held.values()]
        made.step()
    assert gradients == [1, 2]  # of the true length, and not added up
    # Momentum one half: 1 + 1.5 times the gradient.
    assert [float(parameter.detach()) for parameter in held.values()] == [0.5, 0]
    assert bool(made.scalars("group")) == scaled


def test_a_step_that_is_left_out_is_counted_once_and_halves_the_scale() -> None:
    held, plugin = parameters(), LossScaling("cpu")
    made = stepper(held, plugin)
    made.backward(held["first"] + 2 * held["second"])
    for parameter in held.values():
        parameter.grad = torch.tensor(float("inf"))
    made.unscale()
    made.step()
    assert [float(parameter.detach()) for parameter in held.values()] == [3, 5]
    assert made.scalars("group") == {"group/loss_scale": 2.0**15, "group/skipped_steps": 1}


def test_states_come_back_by_name() -> None:
    held, others = parameters(), parameters()
    made, again = stepper(held, None), stepper(others, None)
    made.backward(held["first"] + 2 * held["second"])
    made.step()
    again.load_state_dict(made.state_dict())
    for name, optimizer in again.optimizers.items():
        (state,) = optimizer.state.values()
        assert float(state["momentum_buffer"]) == {"first": 1, "second": 2}[name]


def test_gradients_that_no_scale_makes_finite_are_an_error() -> None:
    plugin = LossScaling("cpu")
    made = stepper(parameters(), plugin)
    plugin.select("any")
    assert made.scalars("group") == {"group/loss_scale": 2.0**16, "group/skipped_steps": 0}
    plugin.scalers["any"] = torch.amp.GradScaler("cpu", LEAST_SCALE / 2)
    with pytest.raises(FloatingPointError, match="the gradients of group stay NaN or infinite"):
        made.scalars("group")
