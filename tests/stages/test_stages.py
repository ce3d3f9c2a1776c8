"""What stages refuse before anything is computed, and how they share sources and networks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from hast_lightning.core.batch import Batch, Needs, Seen
from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError, DivergenceError
from hast_lightning.methods.coboosting import Boost
from hast_lightning.quantization.fake_quant import activation_quantizers
from hast_lightning.sources.generator import ConditionalGenerator
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.sources.noise import Noise
from hast_lightning.stages.alternate import Alternate
from hast_lightning.stages.synthesize import Synthesize
from hast_lightning.terms.cross_entropy import CrossEntropy
from hast_lightning.training.module import ZeroShotQuantization
from tests.small_runs import ALTERNATING, GENERATOR, OWN_CALIBRATION, build_module, fit, small

pytestmark = pytest.mark.usefixtures("undisturbed_torch")


NO_TERMS = (
    "stages.synthesis.terms.bns.enabled=false",
    "stages.synthesis.terms.hard_cross_entropy.weight=0",
)


@pytest.mark.parametrize(
    ("words", "steps"),
    [((), 1), (ALTERNATING, 2), (("method=without_training",), 1)],
    ids=["a source of its own", "one that trains on", "images"],
)
def test_a_student_without_ranges_is_not_calibrated(words: tuple[str, ...], steps: int) -> None:
    module = build_module(
        small(*words, "quantizer.weight_bits=4", "quantizer.activation_bits=null")
    )
    assert module.agenda.stages["calibration"] == steps
    fit(module)
    assert module.ranges_frozen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("stages.synthesis.source=nowhere",),
            "stages.synthesis.source=nowhere is no source; there are: bank, calibration",
        ),
        (
            # The source called calibration is left out where no stage reads it.
            ("stages.calibration.source=nowhere",),
            "stages.calibration.source=nowhere is no source; there are: bank",
        ),
        (
            ("stages.distillation.source=nowhere",),
            "stages.distillation.source=nowhere is no source; there are: bank, calibration",
        ),
        (
            ("method=gdfq", "stages.alternation.synthesis.source=nowhere"),
            "stages.alternation.synthesis.source=nowhere is no source; there are: generator",
        ),
        (
            ("source@sources.bank=noise",),
            "stages.synthesis.source=bank: a source of kind noise has nothing to improve; "
            "leave the stage out of order",
        ),
        (NO_TERMS, "stages.synthesis.terms: none has a weight, so nothing is improved for"),
        (
            GENERATOR[:2],
            "stages.synthesis.steps is not set: a generator has no natural end; say how many "
            "steps it gets",
        ),
        (
            ("order=[distillation]",),
            "order: stages.distillation trains the student, which no stage before it calibrates",
        ),
        (
            ("quantizer=mse", "rounding@quantizer.rounding=adaptive"),
            "stages.distillation trains no weight with rounding@quantizer.rounding=adaptive, which "
            "a stage reconstruct alone learns: choose rounding@quantizer.rounding=nearest",
        ),
        (
            ("order=[distillation,calibration]",),
            "order: stages.distillation trains the student, which no stage before it calibrates",
        ),
        (
            (
                "stages.distillation.terms.kd.weight=0",
                "stages.distillation.terms.alignment.enabled=false",
            ),
            "stages.distillation.terms: none has a weight, so that nothing would be learned",
        ),
        (
            (
                "method=without_training",
                "+stage@stages.again=correct",
                "stages.again.source=bank",
                "stages.again.by=statistics",
                "order=[calibration,correction,again]",
            ),
            "stages.again.by=statistics: stages.correction corrects the same biases before, and "
            "their mean error would be taken off twice; choose stages.again.by=samples, which "
            "measures what is left, or set stages.again.biases=false",
        ),
        (
            (*ALTERNATING, "order=[alternation]"),
            "order: stages.alternation.distillation trains the student, which no stage before it "
            "calibrates",
        ),
        (
            (*ALTERNATING, "stages.alternation.distillation.batch_size=4"),
            "stages.alternation.distillation.batch_size=4 differs from "
            "sources.generator.batch_size=8: both steps see the same batch",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_by_its_key(
    words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_module(small(*words))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ((), "stages.synthesis"),
        ((), "stages.calibration"),
        (ALTERNATING, "stages.alternation.synthesis"),
        (("method=reconstruct", "quantizer=lsq"), "stages.reconstruction"),
    ],
    ids=["synthesis", "calibration", "alternation", "reconstruction"],
)
def test_what_is_made_from_the_students_gradient_is_for_a_stage_that_takes_it(
    words: tuple[str, ...], key: str
) -> None:
    words = (*words, f"+transform@{key}.transforms.promotion=promotion")
    with pytest.raises(ConfigurationError) as caught:
        build_module(small(*words))
    assert str(caught.value) == (
        f"{key}.transforms.promotion: a transform promotion is made from the gradient of a student "
        "step, which only a stage distill takes; leave it out"
    )
    build_module(small(*words, f"{key}.transforms.promotion.enabled=false"))


class Unlabeled(Noise):
    """Noise without labels."""

    kind = "unlabeled"
    label_kind = "none"

    def sample(self, count: int) -> Batch:
        return Batch(super().sample(count).inputs)


def test_labels_are_refused_by_the_key_of_the_term_also_inside_of_a_stage() -> None:
    config = small(*ALTERNATING)
    alternation = config.stages["alternation"]
    assert isinstance(alternation, Alternate)
    config.sources["bare"] = Unlabeled()
    alternation.distillation.source = "bare"
    build_module(config)  # HAST's student needs no labels
    alternation.distillation.terms["mine"] = CrossEntropy()
    with pytest.raises(
        ConfigurationError, match=r"^stages\.alternation\.distillation\.terms\.mine: .* gives none$"
    ):
        build_module(config)


def test_a_source_that_was_read_from_a_file_needs_no_steps(tmp_path: Path) -> None:
    words = ("order=[synthesis]", "sources.bank.size=32")
    module = build_module(small(*words))
    fit(module)
    module.save_samples(tmp_path / "bank.safetensors")
    load = f"sources.bank.load={tmp_path / 'bank.safetensors'}"
    loaded = build_module(small(load))
    assert loaded.agenda.stages == {"calibration": 2, "distillation": 3}
    assert torch.equal(loaded.source.collect(32).inputs, module.source.collect(32).inputs)


# --- a term of the synthesis that looks at the student ---------------------------------------


class Disagreement(Term):
    """The student's squared logits, which images are to lower."""

    kind = "disagreement"

    needs = Needs(student=())

    def forward(self, seen: Seen) -> Tensor:
        assert seen.student is not None
        return seen.student.logits.square().mean()


def test_a_student_that_is_not_calibrated_yet_is_not_looked_at() -> None:
    config = small()
    for name in ("synthesis", "calibration"):
        stage = config.stages[name]
        stage.terms["disagreement"] = Disagreement()
        with pytest.raises(ConfigurationError, match=rf"^stages\.{name}\.terms: a term looks at"):
            build_module(config)
        del stage.terms["disagreement"]


def test_a_student_that_is_looked_at_stays_as_it_is_and_trains_afterwards() -> None:
    class Students(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            parameters = [p.detach().flatten().clone() for p in pl_module.student.parameters()]
            students.append(torch.cat(parameters))
            assert all(p.requires_grad for p in pl_module.student.parameters())
            if pl_module.progress.stage == "more":
                assert all(p.grad is None for p in pl_module.student.parameters())
                assert "more/disagreement" in pl_module.outcome.scalars

    students: list[Tensor] = []
    config = small(*OWN_CALIBRATION)
    config.stages["more"] = Synthesize(
        source="bank", steps=2, terms={"disagreement": Disagreement()}
    )
    config.order = ["synthesis", "calibration", "more", "distillation"]
    module = build_module(config)
    before = module.sources["bank"].active.detach().clone()
    fit(module, [Students()])
    assert torch.equal(students[7], students[9])
    assert not torch.equal(students[9], students[10])
    assert not torch.equal(module.sources["bank"].active, before)


# --- calibrating twice -----------------------------------------------------------------------

TWICE = (
    "+stage@stages.again=calibrate",
    "stages.again.source=calibration",
    "stages.again.steps=3",
    "order=[synthesis,calibration,again]",
)


def scales_of(module: ZeroShotQuantization) -> list[float]:
    return [float(quantizer.scale) for quantizer in activation_quantizers(module.student)]


def test_what_the_student_sees_between_the_steps_of_a_calibration_is_not_observed() -> None:
    class Look(Callback):
        """As an evaluation on the way does, once the ranges are frozen."""

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert isinstance(pl_module, ZeroShotQuantization)
            if pl_module.ranges_frozen:
                with torch.no_grad():
                    pl_module.student(50 * torch.ones(4, 1, 8, 8))

    plain = build_module(small(*TWICE))
    fit(plain)
    looked_at = build_module(small(*TWICE))
    fit(looked_at, [Look()])
    assert scales_of(looked_at) == scales_of(plain)


def test_a_second_calibration_forgets_what_the_first_has_observed() -> None:
    module = build_module(small(*TWICE))
    fit(module)
    again, bench = module.stages["again"], module.bench

    def once_more() -> list[float]:
        torch.manual_seed(0)
        again.begin(bench)
        for index in range(again.length(bench)):
            again.step(bench, index)
        again.end(bench)
        return scales_of(module)

    found = once_more()
    for quantizer in activation_quantizers(module.student):
        quantizer.moving_range.forget()
    assert found == once_more()


# --- alternating steps -----------------------------------------------------------------------


def test_a_batch_is_handed_on_by_the_source_that_the_student_reads_and_no_other() -> None:
    class Seen(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert isinstance(pl_module, ZeroShotQuantization)
            proposed = pl_module.outcome.batch
            if pl_module.progress.stage == "alternation":
                assert proposed is not None
                (answers,) = pl_module.outcome.answers[""]
                handed_on.append(torch.equal(answers.batch.inputs, proposed.inputs))

    handed_on: list[bool] = []
    config = small(*ALTERNATING)
    fit(build_module(config), [Seen()])
    assert handed_on == [True] * 3
    handed_on.clear()
    alternation = config.stages["alternation"]
    assert isinstance(alternation, Alternate)
    config.sources["other"] = ConditionalGenerator(batch_size=8)
    alternation.distillation.source = "other"
    fit(build_module(config), [Seen()])
    assert handed_on == [False] * 3


# --- samples that diverge --------------------------------------------------------------------


def test_finished_images_that_are_not_finite_end_the_run_in_one_line() -> None:
    class Spoil(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, *_: Any
        ) -> None:
            assert isinstance(pl_module, ZeroShotQuantization)
            bank = pl_module.source
            assert isinstance(bank, ImageBank)
            if pl_module.iteration == 2:
                # As a step would do whose gradients are too large.
                optimizer = pl_module.stepper("sources.bank", dict).optimizers["adam"]
                optimizer.param_groups[0]["lr"] = float("inf")

    with pytest.raises(DivergenceError) as caught:
        fit(build_module(small()), [Spoil()])
    assert str(caught.value).startswith(
        "finished images are NaN or infinite at step 3 of 6 of stage synthesis: lower the"
    )


def test_stages_of_a_stage_prepare_their_first_step() -> None:
    """As that which measures the centers of classes, without which it draws images to zeros."""
    began: list[str] = []
    synthesis, distillation = (
        SimpleNamespace(begin=lambda bench, of=name: began.append(of))
        for name in ("first", "second")
    )
    both = SimpleNamespace(synthesis=synthesis, distillation=distillation)
    Alternate.begin(both, None)  # type: ignore[arg-type]
    Boost.begin(SimpleNamespace(_phases=[synthesis, distillation]), None)  # type: ignore[arg-type]
    assert began == 2 * ["first", "second"]
