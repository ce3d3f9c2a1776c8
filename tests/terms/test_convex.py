from __future__ import annotations

import math

import pytest
import torch
from torch import fx, nn

from hast_lightning.core.batch import Needs
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.terms.convex import HIGHEST, Convex, grid_distance
from tests.parts import seen
from tests.small_runs import build_module, fit, small

ONE, ZERO = torch.ones(()), torch.zeros(())


def test_it_is_zero_on_the_grid_and_grows_between() -> None:
    weight = torch.tensor([0.0, 0.25, 0.4, 1.0, 3.0])
    expected = [0.0, -math.log(math.cos(math.pi / 4)), -math.log(math.cos(0.4 * math.pi)), 0.0, 0.0]
    assert grid_distance(weight, ONE, ZERO, 2).tolist() == pytest.approx(expected, abs=1e-6)


def test_half_way_it_is_finite_and_beyond_the_ends_the_last_integer_pulls() -> None:
    weight = torch.tensor([0.5, 3.3, 3.9, -0.2], requires_grad=True)
    found = grid_distance(weight, ONE, ZERO, 2)
    assert float(found[0].detach()) == pytest.approx(HIGHEST)
    assert float(found[2].detach()) == pytest.approx(HIGHEST)
    found.sum().backward()
    assert weight.grad is not None
    slopes = weight.grad.tolist()
    assert slopes[1] > 0 and slopes[3] < 0  # both come back to the grid
    assert weight.grad.isfinite().all()


def test_the_slope_changes_its_sign_half_way_between_two_integers() -> None:
    weight = torch.tensor([0.45, 0.55], requires_grad=True)
    grid_distance(weight, ONE, ZERO, 2).sum().backward()
    assert weight.grad is not None
    steepest = math.pi * math.tan(0.45 * math.pi)
    assert weight.grad.tolist() == pytest.approx([steepest, -steepest], rel=1e-4)


def test_scale_and_zero_point_are_those_of_the_channel() -> None:
    scale, zero_point = torch.tensor([[0.5], [2.0]]), torch.tensor([[2.0], [0.0]])
    weight = torch.tensor([[-1.0, 0.5], [2.0, 6.0]])
    assert torch.allclose(grid_distance(weight, scale, zero_point, 2), torch.zeros(2, 2), atol=1e-6)


class _Network:
    def __init__(self, student: fx.GraphModule) -> None:
        self.graph_module = student


def student(count: int) -> fx.GraphModule:
    torch.manual_seed(0)
    layers = [layer for _ in range(count) for layer in (nn.Linear(4, 4), nn.ReLU())]
    return convert(nn.Sequential(*layers), QuantizerConfig(bits=3))


def test_the_term_is_the_mean_over_all_layers_but_the_first_and_the_last() -> None:
    network, term = student(4), Convex()
    assert term.bind(_Network(network), _Network(network)) == Needs(student=())  # type: ignore[arg-type]
    inner = [layer for _, layer in quantized_layers(network)][1:-1]
    values = [
        grid_distance(each.weight, *each.weight_quantizer.parameters_of(each.weight), 3)
        for each in inner
    ]
    expected = torch.stack(values).mean()
    found = term(seen(torch.zeros(1, 2), torch.zeros(1, 2)))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    found.backward()
    touched = [layer.weight.grad is not None for _, layer in quantized_layers(network)]
    assert touched == [False, True, True, False]


def test_a_network_of_two_layers_has_none_between() -> None:
    network = student(2)
    with pytest.raises(ConfigurationError, match="between the first and the last"):
        Convex().bind(_Network(network), _Network(network))  # type: ignore[arg-type]


def test_a_student_is_trained_with_it() -> None:
    module = build_module(small("+term@stages.distillation.terms.convex=convex"))
    fit(module)
    assert "distillation/convex" in module.outcome.scalars
