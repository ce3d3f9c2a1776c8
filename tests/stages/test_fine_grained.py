"""Reconstruction with losses of layers: EDA-DM's settings of the stage ``reconstruct``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, fx, nn

from hast_lightning.graph.tracing import trace
from hast_lightning.graph.units import exposed_layers, extract, find_units
from hast_lightning.quantization.adaround import AdaptiveWeightQuantizer
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.stages.reconstruct import reconstruction_error
from hast_lightning.training.module import ZeroShotQuantization
from tests.diffusion import SMALL, WORDS, loaded
from tests.small_runs import build_module, fit, small

EDA_DM = ("method=eda_dm_style", "quantizer=power", *WORDS, *SMALL, "quantizer.weight_bits=4")


def denoising(*overrides: str) -> ZeroShotQuantization:
    module = build_module(small(*EDA_DM, *overrides), loaded())
    fit(module)
    return module


def watch_errors(module: ZeroShotQuantization) -> list[tuple[float, float | None]]:
    """Every pair of errors that the stage computes from now on, as numbers."""
    stage, found = module.stages["reconstruction"], list[tuple[float, float | None]]()
    errors: Callable[..., tuple[Tensor, Tensor | None]] = stage._errors  # type: ignore[assignment]

    def watched(batch: object) -> tuple[Tensor, Tensor | None]:
        error, of_layers = errors(batch)
        found.append((float(error), None if of_layers is None else float(of_layers)))
        return error, of_layers

    vars(stage)["_errors"] = watched
    return found


def test_the_layers_of_a_unit_but_the_last_count_too() -> None:
    graph = trace(loaded().network)
    unit = next(unit for unit in find_units(graph, timed=True) if len(unit.layers) == 4)
    whole = extract(graph, unit)
    exposed = exposed_layers(whole, whole)
    assert exposed is not None
    inputs = (torch.randn(2, 4, 8, 8), torch.randn(2, 8))
    with torch.no_grad():
        output, values = exposed[0](*inputs)
        assert torch.equal(output, whole(*inputs))
    assert [tuple(value.shape) for value in values] == [(2, 4, 8, 8), (2, 4), (2, 4, 8, 8)]
    of_time = nn.functional.silu(inputs[1])
    layer = graph.get_submodule("network.down.of_time")
    torch.testing.assert_close(values[1], layer(of_time))


def test_a_unit_of_one_layer_has_no_others() -> None:
    graph = trace(loaded().network)
    head = find_units(graph, timed=True)[-1]
    assert exposed_layers(extract(graph, head), extract(graph, head)) is None


def test_without_losses_of_layers_it_is_plain_reconstruction() -> None:
    """And a weight of 0 takes the same steps, bit for bit, as a unit that has one layer alone."""
    plain = denoising("stages.reconstruction.layer_weight=0")
    one_layer = "network.head"
    weighted = denoising("stages.reconstruction.layer_weight=0.8")
    found = [dict(quantized_layers(m.student)) for m in (plain, weighted)]
    first = find_units(trace(loaded().network), timed=True)[0]
    assert first.layers == ("network.time.0",)
    pairs = [layers[first.layers[0]].weight_quantizer for layers in found]
    assert all(isinstance(each, AdaptiveWeightQuantizer) for each in pairs)
    assert torch.equal(pairs[0].v, pairs[1].v)  # type: ignore[arg-type]
    assert one_layer in found[0]


def test_errors_are_those_of_the_unit_and_of_its_layers() -> None:
    module = build_module(small(*EDA_DM, "stages.reconstruction.drop=0"), loaded())
    found = watch_errors(module)
    fit(module)
    # Two iterations for each of eight units; the three blocks alone have several layers.
    assert len(found) == 16
    assert [of_layers is not None for _, of_layers in found[::2]] == [
        *(False, False, False, True, False, True, True, False)
    ]
    assert all(of_layers > 0 for _, of_layers in found if of_layers is not None)
    assert reconstruction_error(torch.ones(2, 3), torch.zeros(2, 3)) == 3


def test_soft_rounding_starts_from_the_weights_and_ends_at_an_integer_next_to_them() -> None:
    module = build_module(small(*EDA_DM), loaded())
    before = {n: layer.weight.detach().clone() for n, layer in quantized_layers(module.student)}
    fit(module)
    for name, layer in quantized_layers(module.student):
        quantizer = layer.weight_quantizer
        assert isinstance(quantizer, AdaptiveWeightQuantizer)
        place = before[name] / quantizer.scale.detach() + quantizer.zero_point
        inside = (place > 0) & (place < 2**quantizer.bits - 1)
        integers = (layer.weight.detach() / quantizer.scale.detach() + quantizer.zero_point).round()
        below, above = place.floor(), place.floor() + 1
        assert ((integers == below) | (integers == above))[inside].all()
        # AdaRound's scales stay where they were found.
        assert (quantizer.relative_scale == 1).all()


def test_the_rate_of_roundings_falls_and_nothing_drives_them() -> None:
    module = build_module(small(*EDA_DM, "stages.reconstruction.iterations=4"), loaded())
    stage = module.stages["reconstruction"]
    rates = [stage._rate("weights", i) for i in range(4)]  # type: ignore[operator]
    assert rates[0] == 0.5 and rates == sorted(rates, reverse=True) and rates[-1] < 0.1
    assert stage._regularization(module.student, 3) is None  # type: ignore[operator]
    constant = build_module(small(*EDA_DM, "stages.reconstruction.falling=false"), loaded())
    assert constant.stages["reconstruction"]._rate("weights", 1) == 0.5  # type: ignore[operator]


def test_blocks_come_closer_to_the_float_network() -> None:
    words = ("stages.reconstruction.iterations=100", "stages.reconstruction.lr=0.01")
    module = build_module(small(*EDA_DM, *words, "quantizer.activation_bits=4"), loaded())
    fit(module)
    (plot,) = module.stages["reconstruction"].plots()
    before, after = (sum(error for _, error in curve) for curve in plot.curves.values())
    assert after < before


@pytest.mark.parametrize("kind", ["extract"])
def test_a_student_has_units_of_the_same_inputs(kind: str) -> None:
    module = build_module(small(*EDA_DM), loaded())
    units = find_units(module.teacher.graph_module, timed=True)
    make = partial(extract, module.student)
    for unit in units:
        made: fx.GraphModule = make(unit)
        inputs = [node for node in made.graph.nodes if node.op == "placeholder"]
        assert len(inputs) == len(unit.sources), kind
