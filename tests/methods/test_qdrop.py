"""QDrop's units on made images: its constants, and a run."""

from __future__ import annotations

from typing import Any

from hast_lightning.quantization.adaround import AdaptiveWeightQuantizer
from hast_lightning.quantization.fake_quant import quantized_layers
from tests.composition import composed
from tests.small_runs import build_module, fit, small


def test_the_constants_are_the_released_ones() -> None:
    unit: Any = composed("method=qdrop_style", "schedule=released").stages["reconstruction"]
    assert (unit.iterations, unit.batch_size, unit.samples, unit.views) == (20000, 32, 1024, 1)
    assert (unit.trains, unit.learns_scales) == ("rounding", False)
    assert (unit.mix, unit.drop, unit.exponent) == (0.5, 0.5, 2)
    assert (unit.lr, unit.step_lr, unit.regularization) == (1e-3, 4e-5, 0.01)


def test_two_steps_a_unit_leave_scales_of_weights_and_move_steps_of_activations() -> None:
    words = ("schedule.unit_steps=2", "schedule.unit_batch=8", "quantizer=lsq", "quantizer.bits=3")
    module = build_module(small("method=qdrop_style", *words))
    before = {n: p.detach().clone() for n, p in module.student.named_parameters()}
    fit(module)
    layers = [layer.weight_quantizer for _, layer in quantized_layers(module.student)]
    for quantizer in layers:
        assert isinstance(quantizer, AdaptiveWeightQuantizer)
        assert (quantizer.relative_scale == 1).all()
    moved = {n for n, p in module.student.named_parameters() if not p.equal(before[n])}
    assert any(name.endswith("relative_step_size") for name in moved)
    assert any(name.endswith(".v") for name in moved)
