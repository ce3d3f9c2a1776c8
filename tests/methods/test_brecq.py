"""BRECQ's two passes: roundings with float activations, then steps of activations alone."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    activation_quantizers,
    floating_activations,
    quantized_layers,
)
from hast_lightning.stages.reconstruct import Reconstruct, reconstruction_error
from hast_lightning.stages.unit_values import UnitValues
from hast_lightning.training.module import ZeroShotQuantization
from tests.composition import composed
from tests.small_runs import build_module, fit, small

PASSES = ("reconstruction", "activations")
BRECQ = (
    *("method=brecq_style", "quantizer=lsq", "quantizer.bits=2"),
    *(f"stages.{stage}.samples=16" for stage in PASSES),
    *(f"stages.{stage}.iterations=4" for stage in PASSES),
    *(f"stages.{stage}.batch_size=8" for stage in PASSES),
)


def test_constants_are_those_of_the_released_code() -> None:
    config = composed("method=brecq_style", "schedule=released", "quantizer=power")
    first, second = (config.stages[stage] for stage in PASSES)
    assert isinstance(first, Reconstruct) and isinstance(second, Reconstruct)
    assert (first.iterations, first.batch_size, first.samples) == (20_000, 32, 1024)
    assert (first.lr, first.regularization, first.exponent) == (1e-3, 0.01, 2)
    assert (first.drop, first.mix, first.learns_scales, first.step_lr) == (1, 1, False, 0)
    assert (second.iterations, second.step_lr, second.exponent) == (5000, 4e-4, 2.4)
    assert (second.trains, second.drop, second.mix) == ("steps", 0, 0)


def test_the_exponent_is_that_of_each_error() -> None:
    output, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = sum(
        abs(float(output[n, c, i] - target[n, c, i])) ** 2.4
        for n in range(2)
        for c in range(3)
        for i in range(4)
    ) / (2 * 4)
    assert float(reconstruction_error(output, target, 2.4)) == pytest.approx(expected, rel=1e-5)


class Watch(Callback):
    """Weights, roundings and steps behind each pass."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: object) -> None:
        assert isinstance(module, ZeroShotQuantization)
        state = module.student.state_dict()
        self.seen[module.progress.stage] = {name: v.clone() for name, v in state.items()}


def test_the_first_pass_learns_roundings_and_the_second_steps() -> None:
    watch = Watch()
    module = build_module(small(*BRECQ))
    fit(module, [watch])
    before, first, second = (watch.seen[stage] for stage in ("calibration", *PASSES))
    of_activations = {
        f"{name}.{own}"
        for name, quantizer in module.student.named_modules()
        if quantizer in activation_quantizers(module.student)
        for own, _ in quantizer.named_parameters(recurse=False)
    }
    of_weights = {
        f"{name}.{own}"
        for name, _ in quantized_layers(module.student)
        for own in ("weight", "weight_quantizer.v")
    }
    assert len(of_activations) >= 5 and len(of_weights) >= 10

    def changed(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> set[str]:
        return {name for name in old if not torch.equal(old[name], new[name])}

    assert changed(before, first) <= of_weights
    assert {name for name in of_weights if name.endswith(".v")} <= changed(before, first)
    assert changed(first, second) <= of_activations
    assert len(changed(first, second)) >= 4
    modes = {quantizer.mode for quantizer in activation_quantizers(module.student)}
    assert modes == {ActivationMode.QUANTIZE}


def test_units_before_it_are_float_in_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[set[ActivationMode]] = []
    of = UnitValues.of

    def watched(values: UnitValues, number: int) -> object:
        met.append({each.mode for each in activation_quantizers(values.student)})
        return of(values, number)

    monkeypatch.setattr(UnitValues, "of", watched)
    fit(build_module(small(*BRECQ)))
    assert met == [{ActivationMode.FLOAT}] * 5 + [{ActivationMode.QUANTIZE}] * 5


def test_modes_come_back_after_an_error() -> None:
    student = build_module(small(*BRECQ)).student
    quantizers = activation_quantizers(student)
    quantizers[0].mode = ActivationMode.OBSERVE
    with pytest.raises(ZeroDivisionError), floating_activations(student):
        assert {each.mode for each in quantizers} == {ActivationMode.FLOAT}
        raise ZeroDivisionError
    assert quantizers[0].mode is ActivationMode.OBSERVE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quantizer=mse",), "trains=steps needs step sizes of activations that learn"),
        (("stages.activations.step_lr=0",), "trains=steps has nothing else to learn"),
    ],
)
def test_nothing_to_learn_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_module(small(*BRECQ, *words))
