"""The pull to the grid: its phases, its balance, and what it does to gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.mocq import GridPull, balance
from hast_lightning.terms.convex import Convex
from tests.small_runs import build_module, fit, small

EPOCHS = 350


@pytest.mark.parametrize(
    ("epoch", "strength"),
    [(0, 0), (49, 0), (50, 1e-4), (99, 1e-4), (100, 1e-3), (150, 1e-2), (200, 0.1), (299, 1)],
)
def test_phases_are_those_of_the_released_code(epoch: int, strength: float) -> None:
    """``1e-5 * 10^(floor((e - 50) / 50) + 1)`` from epoch 50 on; beyond 300 the last goes on."""
    pull = GridPull(steps=EPOCHS)
    assert pull.strength(epoch) == pytest.approx(strength)
    assert pull.strength(EPOCHS - 1) == pytest.approx(1)


@pytest.mark.parametrize(("norm", "other"), [(3e-4, 20.0), (1.0, 1.0), (700.0, 2e-6)])
def test_balance_brings_one_norm_to_the_magnitude_of_the_other(norm: float, other: float) -> None:
    assert 0.1 <= balance(norm, other) * other / norm <= 10


@pytest.mark.parametrize(("norm", "other"), [(0.0, 1.0), (1.0, 0.0), (float("inf"), 1.0)])
def test_what_has_no_magnitude_is_left_out(norm: float, other: float) -> None:
    assert balance(norm, other) == 0


def test_the_gradient_of_the_distance_is_added_to_the_layers_between() -> None:
    module = build_module(small("method=hast_near_grid", "quantizer=minmax"))
    hook = module.stages["distillation"].hook
    hook.done.fill_(hook.steps)  # the last phase
    for parameter in module.student.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    convex = Convex()
    convex.bind(module.teacher, module.learner)
    weights = [layer.weight for layer in convex.layers]
    pulls = torch.autograd.grad(convex.distance(), weights)
    norms = [
        torch.cat([g.flatten() for g in some]).norm() for some in (pulls, [w.grad for w in weights])
    ]
    factor = balance(float(norms[1]), float(norms[0]))
    said = hook(module.student, None, 1.0)
    assert said["grid_pull"] == pytest.approx(factor)
    assert said["grid_distance"] == pytest.approx(float(convex.distance().detach()))
    for weight, pull in zip(weights, pulls, strict=True):
        torch.testing.assert_close(weight.grad, 1e-3 + factor * pull)
    among = {id(weight) for weight in weights}
    others = [p for p in module.student.parameters() if id(p) not in among]
    assert all(bool((p.grad == 1e-3).all()) for p in others if p.grad is not None)
    assert any(isinstance(m, nn.Linear) for m in module.student.modules())


def test_before_the_first_phase_gradients_stay_as_they_are() -> None:
    module = build_module(small("method=hast_near_grid", "quantizer=minmax"))
    hook = module.stages["distillation"].hook
    for parameter in module.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert hook(module.student, None, 1.0) == {}
    assert all(bool((p.grad == 1).all()) for p in module.student.parameters() if p.grad is not None)


def test_weights_come_closer_to_the_grid_without_another_gradient() -> None:
    module = build_module(small("method=hast_near_grid", "quantizer=minmax"))
    convex = module.stages["distillation"].hook._convex
    before = float(convex.distance().detach())
    weights = [layer.weight for layer in convex.layers]
    for _ in range(20):
        pulls = torch.autograd.grad(convex.distance(), weights)
        with torch.no_grad():
            for weight, pull in zip(weights, pulls, strict=True):
                weight.sub_(pull / pull.abs().max() * 1e-3)
    assert float(convex.distance().detach()) < before


@pytest.mark.parametrize("settings", [{"phases": 0}, {"end": 1.5}, {"start": 0.9}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        GridPull(**settings)  # type: ignore[arg-type]


def test_a_run_says_how_strong_the_pull_is() -> None:
    module = build_module(small("method=hast_near_grid", "quantizer=lsq"))
    fit(module)
    assert module.outcome.scalars["distillation/grid_pull"] > 0
    assert int(module.stages["distillation"].hook.done) == 3
