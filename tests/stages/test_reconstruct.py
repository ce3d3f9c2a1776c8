from __future__ import annotations

import csv
import errno
import logging
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, fx, nn

from hast_lightning.core.batch import Batch
from hast_lightning.errors import ConfigurationError, ModelError, StorageError
from hast_lightning.graph.units import Unit, find_units
from hast_lightning.quantization.adaround import AdaptiveWeightQuantizer
from hast_lightning.quantization.fake_quant import activation_quantizers, quantized_layers
from hast_lightning.runs import pipeline
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.stages import room
from hast_lightning.stages.reconstruct import reconstruction_error
from hast_lightning.stages.unit_values import Cached, largest_unit
from hast_lightning.training.module import ZeroShotQuantization
from tests.small_runs import build_module, fit, small

RECONSTRUCT = (
    "method=reconstruct",
    "stages.correction.samples=16",
    "stages.reconstruction.samples=16",
    "stages.reconstruction.iterations=4",
    "stages.reconstruction.batch_size=8",
)

ROUNDING = (
    *RECONSTRUCT,
    "quantizer=mse",
    "rounding@quantizer.rounding=adaptive",
    "stages.reconstruction.trains=rounding",
)


def rebuilt(*overrides: str) -> ZeroShotQuantization:
    module = build_module(small(*RECONSTRUCT, *overrides))
    fit(module)
    return module


def test_the_error_is_a_sum_over_channels_and_a_mean_over_the_rest() -> None:
    output, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = sum(
        float((output[n, c, h, w] - target[n, c, h, w]) ** 2)
        for n in range(2)
        for c in range(3)
        for h in range(4)
        for w in range(5)
    ) / (2 * 4 * 5)
    assert float(reconstruction_error(output, target)) == pytest.approx(expected, rel=1e-5)


def test_every_unit_has_its_iterations_and_leaves_nothing_behind() -> None:
    module = rebuilt("quantizer=lsq")
    stage = module.stages["reconstruction"]
    assert module.agenda.stages["reconstruction"] == 4 * len(stage._units)  # type: ignore[arg-type]
    assert all(quantizer.drop == 0 for quantizer in activation_quantizers(module.student))
    assert all(parameter.requires_grad for parameter in module.student.parameters())
    assert not [name for name in module._steppers if "reconstruction" in name]


def test_units_come_closer_to_the_teacher() -> None:
    module = build_module(
        small(
            *RECONSTRUCT,
            "quantizer=lsq",
            "stages.reconstruction.iterations=30",
            "stages.reconstruction.drop=0",
        )
    )
    images = torch.randn(32, *module.teacher.pretrained.input_shape)
    fit(module)
    (plot,) = module.stages["reconstruction"].plots()
    before, after = plot.curves.values()
    units = find_units(module.teacher.graph_module)
    assert [x for x, _ in before] == [i + 1 for i, _ in enumerate(units)]
    gained = [b > a for (_, b), (_, a) in zip(before, after, strict=True)]
    assert sum(gained) >= len(gained) - 1
    assert module.student(images).isfinite().all()


def test_learned_rounding_ends_on_the_grid() -> None:
    module = rebuilt(*ROUNDING)
    for name, layer in quantized_layers(module.student):
        quantizer = layer.weight_quantizer
        assert isinstance(quantizer, AdaptiveWeightQuantizer), name
        assert not quantizer.soft
        assert torch.equal(layer.weight, quantizer.rounded(layer.weight)), name


def test_roundings_are_driven_from_a_fifth_of_the_iterations_on_by_a_sum_over_weights() -> None:
    words = ("stages.reconstruction.iterations=10", "stages.reconstruction.regularization=0.01")
    module = build_module(small(*ROUNDING, *words))
    stage = module.stages["reconstruction"]
    for iteration in (0, 1):
        assert stage._regularization(module.student, iteration) is None  # type: ignore[operator]
    layers = [layer for _, layer in quantized_layers(module.student)]
    for iteration, b in ((2, 20.0), (6, 11.0), (10, 2.0)):
        expected = 0.0
        for layer in layers:
            v = layer.weight_quantizer.v.detach().double()  # type: ignore[union-attr]
            bits = (1.2 / (1 + (-v).exp()) - 0.1).clamp(0, 1)
            expected += float((1 - (2 * bits - 1).abs() ** b).sum())
        found = stage._regularization(module.student, iteration)  # type: ignore[operator]
        assert float(found.detach()) == pytest.approx(0.01 * expected, rel=1e-5)


def test_inputs_of_a_unit_are_mixed_element_by_element() -> None:
    module = build_module(small(*RECONSTRUCT, "stages.reconstruction.mix=0.3"))
    stage = module.stages["reconstruction"]
    shape = (64, 3, 8, 8)
    values = ((torch.zeros(shape),), (torch.ones(shape),), torch.zeros(shape))
    stage._cached = Cached(*values)  # type: ignore[assignment]
    stage._held_out = 0  # type: ignore[assignment]
    torch.manual_seed(0)
    batch = stage._batch(module.bench)  # type: ignore[operator]
    (mixed,), (floating,) = batch.mixed, batch.floating
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    assert float(mixed.mean()) == pytest.approx(0.3, abs=0.05)
    assert float(floating.abs().max()) == 0


def test_dropped_activations_pass_unquantized_element_by_element() -> None:
    module = rebuilt("quantizer=lsq", "quantizer.bits=2")
    quantizer = activation_quantizers(module.student)[-1]
    x = torch.rand(16, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    quantized = quantizer(x)
    quantizer.drop = 0.5
    found = quantizer(x)
    passed = found == x
    assert torch.equal(found[~passed], quantized[~passed])
    assert float(passed.float().mean()) == pytest.approx(0.5, abs=0.05)


def test_rates_of_steps_fall_as_a_cosine_and_those_of_roundings_stay() -> None:
    words = ("stages.reconstruction.iterations=4", "stages.reconstruction.step_lr=4e-5")
    stage = build_module(small(*ROUNDING, *words)).stages["reconstruction"]
    steps = [stage._rate("steps", i) for i in range(4)]  # type: ignore[operator]
    expected = [2e-5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert steps == pytest.approx(expected)
    assert [stage._rate("weights", i) for i in range(4)] == [1e-3] * 4  # type: ignore[operator]
    free = build_module(small(*RECONSTRUCT, words[0])).stages["reconstruction"]
    assert free._rate("weights", 2) == pytest.approx(5e-4)  # type: ignore[operator]


def test_what_was_left_undecided_is_said_of_every_unit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: dict[str, float] = {}

    class Listening(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, module: LightningModule, *args: object
        ) -> None:
            assert isinstance(module, ZeroShotQuantization)
            scalars = module.outcome.scalars
            found.update({k: float(v) for k, v in scalars.items() if "/undecided/" in k})

    module = build_module(small(*RECONSTRUCT, *ROUNDING))
    fit(module, [Listening()])
    units = find_units(module.teacher.graph_module)
    assert list(found) == [f"reconstruction/undecided/{unit.name}" for unit in units]
    # Four iterations decide next to nothing.
    assert all(0.1 < value < 0.5 for value in found.values())
    warnings = [r.getMessage() for r in caplog.records if "undecided" in r.getMessage()]
    assert len(warnings) == len(units)
    assert all("raise stages.reconstruction.iterations" in line for line in warnings)


def _errors(*overrides: str) -> list[float]:
    """Errors of units before and after, with NaN for what the source holds out."""
    found: list[float] = []

    class Listening(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, module: LightningModule, *args: object
        ) -> None:
            assert isinstance(module, ZeroShotQuantization)
            found.extend(float(v) for k, v in module.outcome.scalars.items() if "/error_" in k)

    fit(build_module(small(*RECONSTRUCT, "quantizer=lsq", *overrides)), [Listening()])
    assert len(found) == 10
    return found


def test_errors_are_of_samples_that_no_unit_is_rebuilt_on(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = ImageBank.held_out

    def unlike_any(bank: ImageBank, count: int) -> Batch:
        batch = held_out(bank, count)
        return batch._replace(inputs=torch.full_like(batch.inputs, torch.nan))

    monkeypatch.setattr(ImageBank, "held_out", unlike_any)
    # Drawn for a step they would end the run.
    assert all(map(math.isnan, _errors("stages.reconstruction.views=2", "data.holdout=0.25")))


def test_errors_are_of_the_samples_where_nothing_is_held_out() -> None:
    assert all(map(math.isfinite, _errors("data.holdout=0")))


def test_every_unit_is_logged_whatever_the_interval(tmp_path: Path) -> None:
    words = (*RECONSTRUCT, "quantizer=lsq", "trainer.log_every_n_steps=1000")
    config = small(*words)
    pipeline.run(config, tmp_path / "run", "command")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    names = [name for name in rows[0] if "/error_after/" in name]
    assert len(names) == 5
    assert all(len([row for row in rows if row[name]]) == 1 for name in names)
    assert "Error of each unit" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        ("stages.reconstruction.trains=rounding",),
        ("rounding@quantizer.rounding=adaptive",),
    ],
)
def test_what_trains_has_to_fit_the_rounding(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"needs rounding@quantizer\.rounding="):
        build_module(small(*RECONSTRUCT, *overrides))


def test_steps_are_not_learned_where_no_activation_is_quantized() -> None:
    with pytest.raises(ConfigurationError) as caught:
        small(
            *(*RECONSTRUCT, "quantizer=lsq", "stages.reconstruction.trains=steps"),
            "stages.reconstruction.drop=1",
        )
    assert str(caught.value).endswith(
        "drop=1: trains=steps learns from activations that are quantized, and then none is; lower "
        "it"
    )


def test_units_with_nothing_to_learn_are_passed_by() -> None:
    words = (*ROUNDING, "quantizer.overrides=[{layers: 'layer*', weight_bits: 32}]")
    module = build_module(small(*words, "stages.reconstruction.step_lr=0"))
    before = module.student.get_submodule("layer1.0.conv1").weight.clone()  # type: ignore[operator]
    fit(module)
    assert torch.equal(module.student.get_submodule("layer1.0.conv1").weight, before)
    with pytest.raises(ConfigurationError, match="all weights are left in floating point"):
        build_module(small(*ROUNDING, "quantizer.weight_bits=32"))


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (("stages.reconstruction.samples=7",), "7 samples that there are"),
        (
            ("stages.reconstruction.views=2", "stages.reconstruction.samples=3"),
            "3 samples in views=2 that there are",
        ),
        (
            ("stages.reconstruction.batch_size=99", "stages.reconstruction.samples=99"),
            "samples that there are, as many as bank has",
        ),
    ],
)
def test_fewer_samples_than_a_batch_has_are_refused(words: tuple[str, ...], there: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_module(small(*RECONSTRUCT, "quantizer=lsq", *words))
    message = str(caught.value)
    assert message.startswith("stages.reconstruction.batch_size=")
    assert message.endswith(f"{there}: lower it")
    assert "\n" not in message


# In and out, 16 maps of 8x8 numbers of 4 bytes each, of both networks, in 16 views of 16 samples
# and of the 128 that errors are measured on.
KEPT = (16 * 16 + 128) * 2 * 2 * 16 * 8 * 8 * 4
MANY = (*RECONSTRUCT, "quantizer=lsq", "stages.reconstruction.views=16")


def has(monkeypatch: pytest.MonkeyPatch, memory: int | None, free: int = 0) -> None:
    monkeypatch.setattr(room, "memory_of_machine", lambda: memory)
    monkeypatch.setattr(room, "free_on_disk", lambda: free)


def test_more_than_memory_and_disk_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 2 * KEPT - 2, free=KEPT - 1)
    with pytest.raises(ConfigurationError) as caught:
        build_module(small(*MANY))
    message = str(caught.value)
    assert message.startswith("stages.reconstruction.samples=16: the values of 384 samples ")
    assert message.endswith("lower it, or views")
    assert "\n" not in message
    for memory, free in ((2 * KEPT, 0), (None, 0), (1, KEPT)):
        has(monkeypatch, memory, free)
        build_module(small(*MANY))


def test_values_on_the_disk_rebuild_the_same_student(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_memory = rebuilt("quantizer=lsq", "stages.reconstruction.views=16").student.state_dict()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    has(monkeypatch, 1, free=KEPT)
    mapped: list[int] = []
    whole = np.memmap
    monkeypatch.setattr(
        np, "memmap", lambda *given, **named: mapped.append(1) or whole(*given, **named)
    )
    with caplog.at_level(logging.INFO, logger="hast_lightning"):
        on_disk = rebuilt("quantizer=lsq", "stages.reconstruction.views=16").student.state_dict()
    # The samples; what 5 units of the teacher and all but the last of the student's put out.
    assert len(mapped) == 1 + 5 + 4
    assert f"kept in {tmp_path}" in caplog.text
    assert not list(tmp_path.iterdir()), "a file without a name"
    assert all(torch.equal(value, in_memory[name]) for name, value in on_disk.items())


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match=r"^0\.0 GB of values do not fit into .*No space left"):
        room.Room(on_disk=True).gathered(2, [torch.zeros(2, 3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("on_disk", [False, True])
def test_parts_are_gathered_in_their_order(on_disk: bool, dtype: torch.dtype) -> None:
    whole = torch.arange(2 * 3 * 5).view(5, 2, 3).to(dtype)
    found = room.Room(on_disk).gathered(5, iter(torch.split(whole, 2)))
    assert found.dtype == dtype
    assert torch.equal(found, whole)
    none = room.Room(on_disk).gathered(0, [whole[:0]])
    assert none.shape == (0, 2, 3)
    with pytest.raises(ValueError, match="4 of 5 rows were given"):
        room.Room(on_disk).gathered(5, [whole[:4]])


def test_a_container_has_the_memory_that_it_may_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(room, "CONTAINER_LIMIT", limit)
    whole = room.memory_of_machine()
    assert whole is not None
    for text, expected in (("max\n", whole), ("4096\n", 4096), (f"{2 * whole}\n", whole)):
        limit.write_text(text)
        assert room.memory_of_machine() == expected


def test_what_later_units_take_in_is_kept_meanwhile() -> None:
    class Joined(nn.Module):
        """The second of three layers is small, while the first one's output waits for a sum."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 100), nn.Linear(100, 1), nn.Linear(1, 100)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            waits: Tensor = a + self.c(self.b(a))
            return waits

    teacher = fx.symbolic_trace(Joined())
    units = [
        Unit("x", "a", ("a",)),
        Unit("a", "b", ("b",)),
        Unit("b", "c", ("c",)),
        Unit("a", "add", (), ("c",)),
    ]
    unit, size = largest_unit(teacher, units, torch.zeros(1, 4))
    assert (unit.target, size) == ("add", 2 * 4 * (100 + 100 + 100))
    unit, size = largest_unit(
        teacher, [*units[:2], Unit("b", "c", ("c",), ("a",))], torch.zeros(1, 4)
    )
    assert (unit.target, size) == ("c", 2 * 4 * (1 + 100 + 100))


def test_a_user_says_where_units_end() -> None:
    words = (*RECONSTRUCT, "quantizer=lsq", "stages.reconstruction.ends=[layer2.0.relu2]")
    module = build_module(small(*words))
    assert "2 units: conv1 +4, layer3.0.conv1 +2" in module.stages["reconstruction"].found()
    with pytest.raises(
        ModelError, match=r"^stages\.reconstruction\.ends=\['fc'\]: no unit may end"
    ):
        build_module(small(*words, "stages.reconstruction.ends=[fc]"))


def test_it_needs_a_calibrated_student() -> None:
    with pytest.raises(ConfigurationError, match="no stage before it calibrates"):
        build_module(small(*RECONSTRUCT, "order=[synthesis,reconstruction]"))
