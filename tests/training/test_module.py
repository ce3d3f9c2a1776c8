"""A run by its module: who trains when, what each switch changes, that nothing is done twice."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hast_lightning.config import Config
from hast_lightning.core.batch import Batch
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import DivergenceError, ModelError
from hast_lightning.graph.blocks import select_taps
from hast_lightning.graph.tracing import expose, trace
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.models.zoo import load
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    WeightQuantizer,
    activation_quantizers,
    quantized_layers,
)
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.stages.distill import Distill
from hast_lightning.terms.kl import KL
from hast_lightning.training.module import ZeroShotQuantization
from tests.command_line import undisturbed_torch
from tests.small_runs import (
    ALTERNATING,
    ALTERNATING_BANK,
    GENERATOR,
    OWN_CALIBRATION,
    build_module,
    fit,
    small,
)

NO_DIFFICULTY = "stages.synthesis.terms.hard_cross_entropy.by_difficulty=false"


pytestmark = pytest.mark.usefixtures("undisturbed_torch")


def fitted(*overrides: str, callbacks: tuple[Callback, ...] = ()) -> ZeroShotQuantization:
    module = build_module(small(*overrides))
    fit(module, callbacks)
    return module


def tensors(part: nn.Module, *names: str) -> dict[str, Tensor]:
    """Copies of the tensors in a state dict whose names end in one of ``names``; none: all."""
    return {
        name: value.detach().clone()
        for name, value in part.state_dict().items()
        if isinstance(value, Tensor) and name.endswith(names or ("",))
    }


def groups(module: ZeroShotQuantization) -> dict[str, dict[str, Tensor]]:
    """Everything that could change, by what it is."""
    source = tensors(module.source)
    source.pop("permutation", None)  # the order in which images are given
    calibrator = module.sources.get("calibration")
    return {
        "source": source,
        "calibrator": {} if calibrator is None else tensors(calibrator),
        "ranges": tensors(module.student, "scale", "zero_point", ".low", ".high", "range.weight"),
        "student": {name: p.detach().clone() for name, p in module.student.named_parameters()},
        "statistics": tensors(module.student, "running_mean", "running_var", "batches_tracked"),
        "teacher": tensors(module.teacher),
    }


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two groups are equal bit for bit, NaN included."""
    return all(
        torch.equal(first[name].nan_to_num(-7), second[name].nan_to_num(-7)) for name in first
    )


class Changes(Callback):
    """Notes which groups every iteration changed, and that no frozen part is ever training."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ZeroShotQuantization)
        self.before = groups(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, ZeroShotQuantization)
        after = groups(pl_module)
        self.seen.append({name for name in after if not same(self.before[name], after[name])})
        self.before = after
        frozen = (*pl_module.student.modules(), *pl_module.teacher.modules())
        assert not any(part.training for part in frozen)


# --- who trains when -------------------------------------------------------------------------

SYNTHESIS, CALIBRATION, DISTILLATION = [{"source"}], [{"ranges"}], [{"student"}]
CALIBRATED_BY_A_GENERATOR = [{"ranges", "calibrator"}]
BOTH, WARMUP = [{"source", "student"}], [{"source", "ranges"}]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (OWN_CALIBRATION, 6 * SYNTHESIS + 2 * CALIBRATION + 3 * DISTILLATION),
        ((), 6 * SYNTHESIS + 2 * CALIBRATED_BY_A_GENERATOR + 3 * DISTILLATION),
        ((*GENERATOR, *OWN_CALIBRATION), 6 * SYNTHESIS + 2 * CALIBRATION + 3 * DISTILLATION),
        (ALTERNATING_BANK, 2 * WARMUP + 3 * BOTH),
        (ALTERNATING, 2 * WARMUP + 3 * BOTH),
    ],
    ids=["bank", "bank_calibrator", "generator", "alternating_bank", "alternating_generator"],
)
def test_every_iteration_changes_what_its_stage_says_and_nothing_else(
    overrides: tuple[str, ...], expected: list[set[str]]
) -> None:
    changes = Changes()
    module = build_module(small(*overrides))
    student = groups(module)["student"]
    fit(module, (changes,))
    assert changes.seen == expected
    assert module.iteration == module.agenda.iterations == len(expected)
    # Every parameter of the student has moved: weights, scale and shift of the BatchNorms, biases.
    after = groups(module)["student"]
    assert [name for name in student if torch.equal(student[name], after[name])] == []
    assert any("bn1.weight" in name for name in student)


def test_nothing_of_the_teacher_asks_for_a_gradient_or_gets_one() -> None:
    module = fitted()
    parameters = list(module.teacher.parameters())
    assert parameters
    assert not any(parameter.requires_grad for parameter in parameters)
    assert all(parameter.grad is None for parameter in parameters)


def test_student_and_teacher_stay_in_evaluation_mode_whatever_is_asked_for() -> None:
    module = build_module(small(*GENERATOR))
    assert module.train(True) is module
    assert module.training and module.source.training
    assert not module.student.training and not module.teacher.training
    assert not any(part.training for part in module.student.modules())


def optimizer_names(module: ZeroShotQuantization) -> list[str]:
    """Names of the optimizers that a checkpoint would hold now."""
    checkpoint: dict[str, Any] = {"state_dict": {}}
    module.on_save_checkpoint(checkpoint)
    return list(checkpoint["optimizers"])


def test_optimizers_are_made_when_their_stage_begins_and_own_their_parameters() -> None:
    class Names(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert isinstance(pl_module, ZeroShotQuantization)
            names.append(optimizer_names(pl_module))

    names: list[list[str]] = []
    module = fitted(callbacks=(Names(),))
    owners = {
        "sources.bank": [module.source.active],
        "sources.calibration": list(module.sources["calibration"].parameters()),
        "stages.distillation": list(module.student.parameters()),
    }
    bank, calibration, student = owners
    both = [bank, calibration]
    assert names == 6 * [[bank]] + 2 * [both] + 3 * [[*both, student]]
    for name, parameters in owners.items():
        optimizers = module.stepper(name, dict).optimizers.values()
        owned = [p for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]]
        assert {id(p) for p in owned} == {id(p) for p in parameters}


def test_what_goes_on_with_a_source_goes_on_with_its_optimizer() -> None:
    module = fitted(*ALTERNATING)
    assert optimizer_names(module) == ["sources.generator", "stages.alternation.distillation"]
    adam = module.stepper("sources.generator", dict).optimizers["adam"]
    assert {int(state["step"]) for state in adam.state.values()} == {5}


def test_stages_of_any_name_have_optimizers_of_their_own() -> None:
    config = small()
    # Both would be taken for attributes of the module.
    config.stages["train"] = copy.deepcopy(config.stages["distillation"])
    config.sources["step"] = config.sources.pop("bank")
    for stage in config.stages.values():
        stage.source = "step" if stage.source == "bank" else stage.source
    config.order = [*config.order, "train"]
    module = build_module(config)
    fit(module)
    names = ["sources.step", "sources.calibration", "stages.distillation", "stages.train"]
    assert optimizer_names(module) == names
    first, second = (module.stepper(n, dict).optimizers["student"] for n in names[2:])
    assert first is not second
    assert {int(state["step"]) for state in second.state.values()} == {3}


def test_ranges_are_frozen_to_what_was_observed() -> None:
    class Frozen(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            modes.append({quantizer.mode for quantizer in activation_quantizers(pl_module)})

    modes: list[set[ActivationMode]] = []
    module = fitted(callbacks=(Frozen(),))
    assert module.ranges_frozen
    # They are observed within a step alone.
    assert modes == 7 * [{ActivationMode.FLOAT}] + 4 * [{ActivationMode.QUANTIZE}]
    for quantizer in activation_quantizers(module.student):
        low, high = quantizer.moving_range.range()
        assert float(quantizer.scale) == pytest.approx(float(high - low) / (2**3 - 1), rel=1e-6)


@pytest.mark.parametrize("policy", ["cosine", "constant"])
def test_the_learning_rate_of_the_student_follows_the_schedule(policy: str) -> None:
    class Rates(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert isinstance(pl_module, ZeroShotQuantization)
            if pl_module.progress.stage == "distillation":
                stepper = pl_module.stepper("stages.distillation", dict)
                seen.append(stepper.optimizers["student"].param_groups[0]["lr"])

    seen: list[float] = []
    fitted(f"schedule.learning_rate={policy}", callbacks=(Rates(),))
    falling = [1e-3, 7.5e-4, 2.5e-4]  # (1 + cos(pi k / 3)) / 2
    assert seen == pytest.approx(falling if policy == "cosine" else 3 * [1e-3])


class StudentInputs(Callback):
    """Notes every batch that the teacher answers for the student: clean, promoted, clean, ..."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []
        self.proposals: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ZeroShotQuantization)
        trace, propose = pl_module.teacher.trace, pl_module.source.propose

        def noted(images: Tensor, nodes: Any = (), *, unfolded: bool = False) -> Any:
            if not unfolded:  # as synthesis asks for it
                self.batches.append(images.detach().clone())
            return trace(images, nodes, unfolded=unfolded)

        def noted_proposal() -> Batch:
            batch = propose()
            self.proposals.append(batch.inputs.detach().clone())
            return batch

        pl_module.teacher.trace = noted  # type: ignore[method-assign]
        pl_module.source.propose = noted_proposal  # type: ignore[method-assign]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ZeroShotQuantization)
        del pl_module.teacher.trace, pl_module.source.propose


def test_alternating_with_a_generator_both_steps_see_one_batch() -> None:
    inputs = StudentInputs()
    fitted(*ALTERNATING, callbacks=(inputs,))
    assert len(inputs.proposals) == 5
    clean = inputs.batches[::2]
    assert len(clean) == 3
    for made, seen in zip(inputs.proposals[2:], clean, strict=True):
        assert torch.equal(made, seen)


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.detach()}


@pytest.mark.parametrize("alternating", [False, True])
def test_held_out_images_are_never_trained_on_also_after_the_ring_has_wrapped(
    alternating: bool,
) -> None:
    class HeldOut(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert isinstance(pl_module.source, ImageBank)
            if pl_module.source.full:
                held_out.append(rows(pl_module.source.held_out(100).inputs))

    held_out: list[set[bytes]] = []
    inputs = StudentInputs()
    words = {
        False: (*OWN_CALIBRATION, "stages.distillation.transforms.promotion.enabled=false"),
        True: (
            *ALTERNATING_BANK,
            "stages.alternation.distillation.transforms.promotion.enabled=false",
        ),
    }
    module = fitted(
        *words[alternating],
        "schedule.student_steps=30",
        "data.holdout=0.25",
        "sources.bank.size=16",
        "sources.bank.batch_size=8",
        "sources.bank.iterations=2",
        callbacks=(inputs, HeldOut()),
    )
    seen = set().union(*map(rows, inputs.batches))
    # Written once, and the same images from then on.
    assert len(held_out) >= 28 and all(images == held_out[0] for images in held_out)
    assert len(held_out[0]) == 4
    assert not seen & held_out[0]
    # All others are used; alternating, 16 batches were written to a ring that has room for two.
    assert isinstance(module.source, ImageBank)
    assert len(seen) > 60 if alternating else len(seen) == 12


# --- the switches of the ablation ------------------------------------------------------------


def states(module: ZeroShotQuantization) -> dict[str, dict[str, Tensor]]:
    return {name: value for name, value in groups(module).items() if name != "statistics"}


def differing(first: ZeroShotQuantization, second: ZeroShotQuantization) -> set[str]:
    left, right = states(first), states(second)
    return {name for name in left if not same(left[name], right[name])}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first = fitted()
    assert differing(first, fitted()) == set()
    assert differing(first, fitted("seed=1")) == {"source", "calibrator", "ranges", "student"}


def test_hardness_is_switched_off_by_its_switch_or_by_gamma_zero() -> None:
    off = fitted(NO_DIFFICULTY)
    gamma = "stages.synthesis.terms.hard_cross_entropy.gamma=0"
    assert differing(off, fitted(gamma)) == set()
    # What calibrates has no difficulty in its loss; what is distilled on has changed.
    assert differing(off, fitted()) == {"source", "student"}


def test_hardness_changes_the_weight_of_the_samples_and_no_other_part_of_the_loss() -> None:
    class First(Callback):
        def on_train_batch_end(
            self,
            trainer: Trainer,
            pl_module: LightningModule,
            outputs: Any,
            batch: Any,
            number: int,
        ) -> None:
            if number == 0:
                found = pl_module.outcome.scalars.items()
                scalars.append({key: float(value) for key, value in found})

    scalars: list[dict[str, float]] = []
    module = build_module(small())
    proposed = module.source.propose()
    images, labels = proposed.inputs.detach().clone(), proposed.targets.clone()
    fit(module, (First(),))
    fitted(NO_DIFFICULTY, callbacks=(First(),))
    hard, plain = scalars
    assert hard["synthesis/bns"] == plain["synthesis/bns"]
    logits = module.teacher(images)
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    mean = float(cross_entropy.mean())
    assert plain["synthesis/hard_cross_entropy"] == pytest.approx(10 * mean)
    difficulty = 1 - logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    weighted = 10 * (difficulty**2 * cross_entropy).mean()
    assert hard["synthesis/hard_cross_entropy"] == pytest.approx(float(weighted), rel=1e-4)


@pytest.mark.parametrize("part", ["transforms.promotion", "terms.alignment"])
def test_a_switch_of_the_distillation_changes_the_student_alone(part: str) -> None:
    full, without = fitted(), fitted(f"stages.distillation.{part}.enabled=false")
    assert differing(full, without) == {"student"}
    missing = {
        "transforms.promotion": {"distillation/kd_promoted", "distillation/alignment_promoted"},
        "terms.alignment": {"distillation/alignment", "distillation/alignment_promoted"},
    }
    measured, left = full.outcome.scalars.keys(), without.outcome.scalars.keys()
    assert measured - left == missing[part]
    assert left <= measured


def reference_loss(
    config: Config, student: Any, teacher: FrozenTeacher, taps: list[str], images: Tensor
) -> Tensor:
    """The student's loss as the paper has it, written out."""
    (own, own_features), (given, values, _) = student(images), teacher.trace(images, taps)
    distillation = config.stages["distillation"]
    assert isinstance(distillation, Distill)
    kd, alignment = distillation.terms["kd"], distillation.terms["alignment"]
    assert isinstance(kd, KL)
    target, prediction = (logits / kd.temperature for logits in (given, own))
    divergence = target.softmax(1) * (target.log_softmax(1) - prediction.log_softmax(1))
    loss = kd.weight * kd.temperature**2 * divergence.sum(1).mean()
    for features, tap in zip(own_features, taps, strict=True):
        attentions = [F.normalize(f.square().mean((2, 3)), dim=1) for f in (features, values[tap])]
        loss = loss + alignment.weight * F.mse_loss(*attentions)
    return loss


@pytest.mark.parametrize("alignment", [True, False])
@pytest.mark.parametrize("promotion", [True, False])
def test_a_student_step_is_that_of_the_paper(promotion: bool, alignment: bool) -> None:
    class Before(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, *_: Any
        ) -> None:
            students[0] = copy.deepcopy(pl_module.student)

    # At 8 bits a last-bit difference cannot move an activation far.
    config = small(
        "schedule.student_steps=1",
        "quantizer.weight_bits=8",
        "quantizer.activation_bits=8",
        f"stages.distillation.transforms.promotion.enabled={promotion}",
        f"stages.distillation.terms.alignment.enabled={alignment}",
    )
    students: list[Any] = [None]
    inputs = StudentInputs()
    module = build_module(config)
    fit(module, (inputs, Before()))

    taps = select_taps(trace(load(config.model).network), None) if alignment else []
    assert bool(taps) == alignment
    student, teacher = expose(students[0], taps), module.teacher
    images = inputs.batches[0].requires_grad_()
    total = reference_loss(config, student, teacher, taps, images)
    if promotion:
        (slope,) = torch.autograd.grad(total, images, retain_graph=True)
        harder = images.detach() + 0.01 * slope.sign()
        # Of a pixel whose gradient is almost zero the sign may differ.
        assert (inputs.batches[1] != harder).float().mean() < 0.01
        total = total + reference_loss(config, student, teacher, taps, inputs.batches[1])
    names, parameters = zip(*students[0].named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(total, parameters), strict=True))
    assert len(inputs.batches) == 1 + promotion
    for name, parameter in module.student.named_parameters():
        assert parameter.grad is not None
        assert relative_distance(parameter.grad, expected[name]) < 1e-3, name


def relative_distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# --- nothing is computed twice ---------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts the operations that are executed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Counted(Callback):
    """Counts the operations of each iteration."""

    def __init__(self) -> None:
        self.iterations: list[Counter[str]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.mode = Operations()
        self.mode.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.mode.__exit__(None, None, None)
        self.iterations.append(self.mode.counts)


@pytest.mark.parametrize("promotion", [True, False])
def test_a_student_step_computes_nothing_twice(
    promotion: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters_of = WeightQuantizer.parameters_of
    rounding: list[int] = []

    def counted(self: WeightQuantizer, weight: Tensor) -> Tensor:
        rounding.append(1)
        return parameters_of(self, weight)

    monkeypatch.setattr(WeightQuantizer, "parameters_of", counted)
    operations = Counted()
    module = fitted(
        f"stages.distillation.transforms.promotion.enabled={promotion}",
        *OWN_CALIBRATION,
        "schedule.student_steps=1",
        callbacks=(operations,),
    )
    layers = [layer for _, layer in quantized_layers(module.student)]
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in layers)
    synthesis, calibration, distillation = (operations.iterations[i] for i in (0, 6, 8))

    # One pass of the teacher and back again; one pass of the student.
    assert synthesis["convolution"] == synthesis["convolution_backward"] == convolutions
    assert calibration["convolution"] == convolutions
    assert calibration["convolution_backward"] == 0
    # Each network passes once, and with promotion once more. The first way back goes through
    # both, since it also gives the perturbation; the second through the student alone.
    assert distillation["convolution"] == (4 if promotion else 2) * convolutions
    assert distillation["convolution_backward"] == (3 if promotion else 1) * convolutions
    # Weights are rounded once for every step, whatever passes there are.
    assert len(rounding) == len(layers) * (2 + 1)


# --- options that change speed and not results -----------------------------------------------


def one_step_each(*overrides: str) -> tuple[dict[str, float], Tensor, Tensor]:
    """Every loss, the gradient of the images, and the whole gradient of the student."""

    class Notes(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            losses.update({k: float(v) for k, v in pl_module.outcome.scalars.items()})
            if pl_module.progress.stage == "synthesis":
                images.append(pl_module.source.active.grad.clone())

    losses: dict[str, float] = {}
    images: list[Tensor] = []
    module = fitted(
        "stages.synthesis.steps=1",
        "schedule.calibration_steps=1",
        "schedule.student_steps=1",
        # The student sees the images as the synthesis step leaves them: nearly as they were.
        "sources.bank.lr=1e-4",
        "stages.distillation.batch_size=32",
        *OWN_CALIBRATION,
        *overrides,
        callbacks=(Notes(),),
    )
    gradients = [parameter.grad.flatten() for parameter in module.student.parameters()]
    return losses, images[0], torch.cat(gradients)


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, float], Tensor, Tensor]:
    with undisturbed_torch():
        return one_step_each()


def loss_deviations(found: dict[str, float], expected: dict[str, float]) -> dict[str, float]:
    assert found.keys() == expected.keys()
    return {name: abs(found[name] / expected[name] - 1) for name in expected}


def test_channels_last_agrees_with_the_plain_path(plain: Any) -> None:
    losses, images, weights = one_step_each("trainer.channels_last=true")
    # The same float32 arithmetic in another order of summation.
    assert max(loss_deviations(losses, plain[0]).values()) < 1e-4
    assert relative_distance(images, plain[1]) < 1e-5
    assert relative_distance(weights, plain[2]) < 1e-4


def test_bfloat16_agrees_with_the_plain_path(plain: Any) -> None:
    losses, images, weights = one_step_each("trainer.precision=bf16-mixed")
    deviations = loss_deviations(losses, plain[0])
    # Eight significant bits, 0.4 % a rounding.
    assert 0 < deviations["synthesis/bns"] < 0.01
    assert 0 < deviations["synthesis/hard_cross_entropy"] < 0.01
    assert relative_distance(images, plain[1]) < 0.15
    # A value near a boundary falls to the other of eight levels, which is no small change:
    # rounding nothing but the outputs of the student's convolutions has the same effect.
    assert max(deviations.values()) < 0.3
    assert F.cosine_similarity(weights, plain[2], dim=0) > 0.9


@pytest.mark.slow
@pytest.mark.timeout(900)  # the C++ compiler takes its time
def test_compiled_passes_agree_with_the_plain_path(plain: Any) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is none")
    losses, images, weights = one_step_each("trainer.compile=true")
    # float32 with fused operations.
    assert max(loss_deviations(losses, plain[0]).values()) < 1e-4
    assert relative_distance(images, plain[1]) < 1e-5
    assert relative_distance(weights, plain[2]) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_passes_are_compiled_once() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is none")

    class FirstOfEachCompiles(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, number: int
        ) -> None:
            first = number in (0, 6, 8)
            torch.compiler.set_stance("default" if first else "fail_on_recompile")

    try:
        module = fitted(
            "trainer.compile=true", *OWN_CALIBRATION, callbacks=(FirstOfEachCompiles(),)
        )
    finally:
        torch.compiler.set_stance("default")
    assert module.iteration == 11


# --- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (
            ["stages.synthesis.terms.hard_cross_entropy.weight=1e38"],
            "synthesis loss became inf at step 1 of 6 of stage synthesis",
        ),
        (
            ["stages.calibration.terms.cross_entropy.weight=1e38"],
            "calibration loss became inf at step 1 of 2 of stage calibration",
        ),
        (
            ["stages.distillation.terms.kd.weight=1e39"],
            "distillation loss became inf at step 1 of 3 of stage distillation",
        ),
        (
            ["stages.distillation.optimizer.lr=1e30"],
            "distillation loss became nan at step 2 of 3 of stage distillation",
        ),
        (
            [*ALTERNATING, "stages.alternation.distillation.optimizer.lr=1e30"],
            "distillation loss became nan at step 2 of 3 of stage alternation",
        ),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(
    overrides: list[str], place: str
) -> None:
    with pytest.raises(DivergenceError, match=place) as caught:
        fitted(*overrides)
    assert "\n" not in str(caught.value)


def plain_network() -> PretrainedNetwork:
    """A network without residual additions or separable blocks."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)
    ).eval()
    return PretrainedNetwork(network, "plain", (1, 8, 8), 10, (0.5,), (0.5,), "0" * 64)


def test_a_network_without_anything_to_align_is_refused_with_what_helps() -> None:
    plain = plain_network()
    assert isinstance(plain.network, nn.Sequential)
    plain.network[2] = nn.Identity()
    plain.network.extend([nn.ReLU(), nn.Linear(10, 10)])
    with pytest.raises(ModelError, match=r"channel_attention .*model\.taps.*enabled=false"):
        build_module(small(), plain)


def test_a_network_without_blocks_is_aligned_at_activations_and_told_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = plain_network()
    for _ in range(2):
        module = build_module(small(), plain)
    fit(module)
    assert "distillation/alignment" in module.outcome.scalars
    (line,) = [record.getMessage() for record in caplog.records if "aligned" in record.msg]
    assert "plain has no residual or depthwise-separable blocks" in line
    assert "last activation of each resolution, _2 (model.taps" in line


@pytest.mark.parametrize("taps", [None, ("1",)])
def test_a_network_without_blocks_is_trained_as_is_said(
    taps: tuple[str, ...] | None,
) -> None:
    words = () if taps else ("stages.distillation.terms.alignment.enabled=false",)
    module = build_module(small(*words), dataclasses.replace(plain_network(), taps=taps))
    fit(module)
    assert ("distillation/alignment" in module.outcome.scalars) == bool(taps)


def test_what_an_iteration_did_not_measure_is_not_among_its_scalars() -> None:
    class Names(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            seen.append({name.partition("/")[0] for name in pl_module.outcome.scalars})

    seen: list[set[str]] = []
    fitted(*OWN_CALIBRATION, callbacks=(Names(),))
    assert seen == 6 * [{"synthesis"}] + 2 * [set()] + 3 * [{"distillation"}]
