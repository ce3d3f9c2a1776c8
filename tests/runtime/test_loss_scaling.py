"""Float16: scaled losses, true gradients, steps that are left out, and scales in checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.errors import DivergenceError
from hast_lightning.runtime.loss_scaling import LEAST_SCALE, LossScaling
from hast_lightning.stages.distill import spoil_gradients
from hast_lightning.training.module import ZeroShotQuantization
from tests.small_runs import build_module, fit, small

HALF = "trainer.precision=16-mixed"
SOURCE, STUDENT = "sources.bank", "stages.distillation"
INITIAL_SCALE = 2.0**16
LOW_SCALE = 2.0**8


pytestmark = pytest.mark.usefixtures("undisturbed_torch")


class Watch(Callback):
    """Notes the scalars of every iteration, and lets a test reach into the plugin."""

    def __init__(self, act: Any = None) -> None:
        self.scalars: list[dict[str, float]] = []
        self.students: list[Tensor] = []
        self.dtypes: set[torch.dtype] = set()
        self.act = act

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer in pl_module.student.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _, __, out: self.dtypes.add(out.dtype))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.act is not None:
            self.act(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.scalars.append({key: float(value) for key, value in pl_module.outcome.scalars.items()})
        self.students.append(flat(pl_module.student))


def low(module: ZeroShotQuantization) -> None:
    """Begin at a scale where nothing overflows: two of three steps would find it."""
    if module.iteration == 0:
        for name in (SOURCE, "sources.calibration", STUDENT):
            module.loss_scaling.scalers[name] = torch.amp.GradScaler("cpu", LOW_SCALE)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def watched(*overrides: str, act: Any = None) -> tuple[ZeroShotQuantization, Watch]:
    module, watch = build_module(small(HALF, *overrides)), Watch(act)
    fit(module, [watch])
    return module, watch


def test_a_run_in_float16_ends_near_one_in_float32() -> None:
    # Eight bits and plain gradients: at three, or with Adam's first steps, which have all the same
    # length, what float16 rounds decides between two values far apart.
    alike = (
        "stages.distillation.transforms.promotion.enabled=false",
        "quantizer.weight_bits=8",
        "quantizer.activation_bits=8",
        "stages.distillation.optimizer.name=sgd",
    )
    half, watch = watched(*alike, act=low)
    full = build_module(small(*alike))
    start = flat(full.student)
    fit(full)
    moved, reference = flat(half.student) - start, flat(full.student) - start
    assert torch.float16 in watch.dtypes
    assert F.cosine_similarity(moved, reference, dim=0) > 0.9
    assert 0.8 < moved.norm() / reference.norm() < 1.25
    assert watch.scalars[-1]["distillation/loss_scale"] == LOW_SCALE
    assert watch.scalars[-1]["distillation/skipped_steps"] == 0
    # Weights, ranges, images: all that is kept is float32.
    kept = [*half.student.state_dict().values(), half.source.images]
    assert {value.dtype for value in kept if value.is_floating_point()} == {torch.float32}


def test_every_optimizer_has_a_scale_of_its_own() -> None:
    def overflow_once(module: ZeroShotQuantization) -> None:
        if module.iteration == 0:
            module.loss_scaling.scalers[SOURCE] = torch.amp.GradScaler("cpu", 2.0**120)

    module, watch = watched(act=overflow_once)
    synthesis = [s for s in watch.scalars if "synthesis/loss_scale" in s]
    assert synthesis[0]["synthesis/loss_scale"] == 2.0**119
    assert synthesis[0]["synthesis/skipped_steps"] == 1
    assert watch.scalars[-1]["distillation/loss_scale"] <= INITIAL_SCALE
    assert module.iteration == module.agenda.iterations


def test_a_step_whose_gradients_overflow_changes_nothing_and_is_counted() -> None:
    def overflow(module: ZeroShotQuantization) -> None:
        if module.agenda.progress(module.iteration).stage == "distillation":
            module.loss_scaling.scalers[STUDENT] = torch.amp.GradScaler("cpu", 2.0**120)

    module, watch = watched(act=overflow)
    steps = [i for i, s in enumerate(watch.scalars) if "distillation/loss_scale" in s]
    assert len(steps) == 3
    for step in steps:
        assert torch.equal(watch.students[step], watch.students[steps[0] - 1])
    counts = [watch.scalars[i]["distillation/skipped_steps"] for i in steps]
    assert counts == [1, 2, 3]
    assert flat(module.student).isfinite().all()


def test_an_image_gradient_that_overflows_in_the_teacher_skips_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] * float("nan")

    module = build_module(small(HALF))
    trace, seen = module.teacher.trace, []

    def overflowing(images: Tensor, nodes: Any = (), *, unfolded: bool = False) -> Any:
        if not unfolded:  # as synthesis asks for it
            seen.append(len(images))
            images = Overflow.apply(images)
        return trace(images, nodes, unfolded=unfolded)

    monkeypatch.setattr(module.teacher, "trace", overflowing)
    watch = Watch()
    fit(module, [watch])
    assert len(seen) == 3  # no promoted copies
    assert watch.scalars[-1]["distillation/skipped_steps"] == 3
    assert torch.equal(watch.students[-1], watch.students[0])


def test_gradients_are_clipped_at_their_true_length() -> None:
    _, watch = watched("stages.distillation.optimizer.clip_norm=1e-3", act=low)
    full = build_module(small("stages.distillation.optimizer.clip_norm=1e-3"))
    reference = Watch()
    fit(full, [reference])
    norms, expected = (
        [s["distillation/gradient_norm"] for s in scalars if "distillation/gradient_norm" in s]
        for scalars in (watch.scalars, reference.scalars)
    )
    assert norms[0] == pytest.approx(expected[0], rel=0.3)  # not 65,536 times as long


def test_gradients_that_are_never_finite_end_the_run() -> None:
    def always(module: ZeroShotQuantization) -> None:
        spoil = torch.amp.GradScaler("cpu", LEAST_SCALE)
        module.loss_scaling.scalers[STUDENT] = spoil
        hook = next(module.student.parameters())
        if not hook._backward_hooks:
            hook.register_hook(lambda gradient: gradient * float("nan"))

    with pytest.raises(DivergenceError, match=r"distillation stay NaN .* step 1 of 3 of stage"):
        watched(act=always)


def test_scales_and_counts_come_back() -> None:
    before, after = LossScaling("cpu"), LossScaling("cpu")
    before.select("one")
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    before.scaler.scale(parameter.sum()).backward()
    parameter.grad[0] = float("inf")
    before.unscale(optimizer)
    before.scaler.step(optimizer)
    before.update()
    after.load_state_dict(before.state_dict())
    after.select("one")
    assert (after.scale, after.skipped_steps) == (INITIAL_SCALE / 2, 1)
    after.select("other")
    assert (after.scale, after.skipped_steps) == (INITIAL_SCALE, 0)


def test_spoiled_gradients_are_infinite_in_one_place_that_has_one() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    module[1](torch.ones(1, 1)).sum().backward()
    spoil_gradients(module)
    assert module[0].weight.grad is None
    assert module[1].weight.grad.isinf().all()
