"""The stage that rounds layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from hast_lightning.core.batch import Batch
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.quantization.gptq import FixedGrid, input_rows, round_layer
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig
from hast_lightning.stages.gptq import GPTQ


class Bench:
    """As much of one as the stage looks at."""

    def __init__(self, network: nn.Module, inputs: Tensor, **settings: object) -> None:
        options = {"weight_bits": 3, "activation_bits": None, "rounding": FixedGrid()}
        self.student: fx.GraphModule = convert(network, QuantizerConfig(**{**options, **settings}))  # type: ignore[arg-type]
        self.sources = {"given": self}
        self.inputs, self.ranges_frozen = inputs, True

    def collect(self, count: int) -> Batch:
        """Return the first inputs."""
        return Batch(self.inputs[:count])

    def layout(self, inputs: Tensor) -> Tensor:
        """Leave them as they are."""
        return inputs


class Residual(nn.Module):
    """Convolutions beside each other, a sum, a layer that is called twice, and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 2, H, W) to (N, 3)."""
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.twice(torch.relu(self.twice(x))))
        found: Tensor = self.out(x.mean((2, 3)))
        return found


def prepared(batch_size: int = 8, **settings: object) -> tuple[GPTQ, Bench]:
    torch.manual_seed(0)
    network = Residual().eval()
    bench = Bench(network, torch.randn(20, 2, 6, 6), **settings)
    stage = GPTQ(source="given", batch_size=batch_size, samples=16)
    stage.place("rounding", "stages.rounding")
    stage.bind(bench)  # type: ignore[arg-type]
    return stage, bench


def run(stage: GPTQ, bench: Bench) -> dict[str, float]:
    found: dict[str, float] = {}
    for index in range(stage.length(bench)):  # type: ignore[arg-type]
        outcome = stage.step(bench, index)  # type: ignore[arg-type]
        found |= {key: float(value) for key, value in outcome.scalars.items()}
    stage.end(bench)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("batch_size", [3, 16])
def test_each_layer_is_rounded_for_what_the_rounded_ones_before_put_out(batch_size: int) -> None:
    stage, bench = prepared(batch_size)
    expected = copy.deepcopy(bench.student)
    layers = dict(quantized_layers(expected))
    seen: list[Tensor] = []
    for name in ("first", "twice", "out"):
        handle = layers[name].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            expected(bench.inputs[:16])
        handle.remove()
        rows = input_rows(layers[name], seen[0])  # of the first call
        seen.clear()
        hessian = 2 * rows.transpose(1, 2) @ rows / rows.shape[1]
        round_layer(layers[name], hessian, 0.01, 128)
    run(stage, bench)
    for name, layer in quantized_layers(bench.student):
        torch.testing.assert_close(layer.weight, layers[name].weight, atol=1e-5, rtol=1e-4)


def test_the_errors_that_are_logged_are_those_of_the_layers_outputs() -> None:
    stage, bench = prepared()
    before = copy.deepcopy(bench.student)
    found = run(stage, bench)
    assert stage.length(bench) == 3  # type: ignore[arg-type]
    x = bench.inputs[:16]
    first = before.get_submodule("first")
    weights = {
        "error_nearest": first.weight_quantizer.rounded(first.weight),  # type: ignore[union-attr, operator]
        "error": bench.student.get_submodule("first").weight,
    }
    for name, weight in weights.items():
        difference = nn.functional.conv2d(x, first.weight - weight, padding=1)  # type: ignore[operator]
        expected = float(difference.square().sum(1).mean().detach())
        assert found[f"rounding/{name}/first"] == pytest.approx(expected, rel=1e-3)
    for name in ("first", "twice", "out"):
        assert found[f"rounding/error/{name}"] <= found[f"rounding/error_nearest/{name}"]


def test_a_resumed_stage_goes_through_the_rounded_layers_again() -> None:
    (whole, bench), (first, other) = prepared(), prepared()
    run(whole, bench)
    first.step(other, 0)  # type: ignore[arg-type]
    second = GPTQ(source="given", batch_size=8, samples=16)
    second.place("rounding", "stages.rounding")
    second.bind(other)  # type: ignore[arg-type]
    for index in (1, 2):
        second.step(other, index)  # type: ignore[arg-type]
    for (_, left), (_, right) in zip(
        quantized_layers(bench.student), quantized_layers(other.student), strict=True
    ):
        assert torch.equal(left.weight, right.weight)


def test_what_cannot_be_rounded_so_is_refused() -> None:
    from hast_lightning.quantization.nearest import Nearest

    with pytest.raises(ConfigurationError, match=r"needs rounding@quantizer.rounding=fixed_grid"):
        prepared(rounding=Nearest())
    with pytest.raises(ConfigurationError, match="all are left in floating point"):
        prepared(weight_bits=None, activation_bits=4)
    stage, bench = prepared()
    bench.ranges_frozen = False
    with pytest.raises(ConfigurationError, match="no stage before it calibrates"):
        stage.bind(bench)  # type: ignore[arg-type]
    signal = Bench(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()), torch.randn(2, 2, 8))
    with pytest.raises(ConfigurationError, match="rounds Linear and Conv2d, and 0 is another"):
        stage.bind(signal)  # type: ignore[arg-type]


def test_layers_in_floating_point_are_left_alone() -> None:
    stage, bench = prepared(overrides=[LayerBits("out", weight_bits=32)])
    before = bench.student.get_submodule("out").weight.clone()  # type: ignore[union-attr, operator]
    run(stage, bench)
    assert torch.equal(bench.student.get_submodule("out").weight, before)  # type: ignore[arg-type]


def test_autocast_leaves_its_errors_in_float32() -> None:
    found = []
    for autocasts in (False, True):
        stage, bench = prepared()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocasts):
            found.append(run(stage, bench))
    # What the first layer takes in is what the network does.
    plain, cast = ({k: v for k, v in each.items() if k.endswith("first")} for each in found)
    assert len(plain) == 2
    assert cast == pytest.approx(plain, rel=1e-6)
