"""AdaDFQ's and AdaSG's terms against plain references, and a run of a few steps."""

from __future__ import annotations

import math

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.adadfq import (
    AgreementCrossEntropy,
    DifferenceEntropy,
    DisagreementCrossEntropy,
    EntropyMargins,
    relative_entropy_in_batch,
)
from tests.composition import composed
from tests.small_runs import build_module, fit, small

MARGINS = [(0.1, 0.8), (0.3, 0.8), (0.4, 0.8)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(
    teacher: Tensor, student: Tensor, targets: Tensor | None = None, weights: Tensor | None = None
) -> Seen:
    batch = Batch(noise(len(teacher), 1), targets, weights)
    return Seen(batch, Trace(teacher, {}), Trace(student, {}), Progress("alternation", 1, 2))


def plain_entropies(logits: Tensor, temperature: float = 1.0) -> list[float]:
    found = []
    for row in logits.tolist():
        powers = [math.exp(value / temperature) for value in row]
        shares = [power / sum(powers) for power in powers]
        found.append(-sum(share * math.log(share) for share in shares))
    return found


def plain_cross_entropy(logits: Tensor, targets: Tensor) -> float:
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    each = [math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in rows]
    return sum(each) / len(each)


@pytest.mark.parametrize("temperature", [1.0, 5.0, 20.0])
def test_the_students_loss_is_the_negative_entropy_of_the_difference(temperature: float) -> None:
    """And no divergence: it wants the difference to be a constant, whatever the two say."""
    teacher, student = 3 * noise(7, 10), 3 * noise(7, 10, seed=1)
    term = DifferenceEntropy(temperature=temperature)
    entropies = plain_entropies(teacher - student, temperature)
    expected = -(temperature**2) * sum(entropies) / 7
    assert float(term(seen(teacher, student))) == pytest.approx(expected, rel=1e-5)
    least = -(temperature**2) * math.log(10)
    shifted = seen(teacher, teacher + noise(7, 1))
    assert float(term(shifted)) == pytest.approx(least, rel=1e-5)
    assert expected > least
    weights = torch.rand(7)
    weighted = -(temperature**2) * (weights * torch.tensor(entropies)).sum() / weights.sum()
    torch.testing.assert_close(term(seen(teacher, student, weights=weights)), weighted)


@pytest.mark.parametrize("count", [2, 16, 23])
@pytest.mark.parametrize(("lower", "upper"), MARGINS)
def test_margins_are_those_of_the_entropy_relative_to_the_batch(
    count: int, lower: float, upper: float
) -> None:
    """At any batch size: the released code works at 16 alone."""
    teacher, student = 2 * noise(count, 10), 0.5 * noise(count, 10, seed=1)
    teacher[::2] *= 0.1
    entropies = plain_entropies(teacher - student)
    least, most = min(entropies), math.log(10)
    relative = [(entropy - least) / (most - least) for entropy in entropies]
    expected = sum(max(lower - h, 0) + max(h - upper, 0) for h in relative) / count
    term = EntropyMargins(lower=lower, upper=upper)
    assert float(term(seen(teacher, student))) == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_the_least_entropy_of_the_batch_carries_gradient() -> None:
    logits = noise(5, 4).requires_grad_()
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    smallest = int(entropies.argmin())
    others = [index for index in range(5) if index != smallest]
    relative = (entropies - entropies.min()) / (math.log(4) - entropies.min())
    (plain,) = torch.autograd.grad(relative.sum(), logits)
    (ours,) = torch.autograd.grad(relative_entropy_in_batch(logits).sum(), logits)
    torch.testing.assert_close(ours, plain)
    assert plain[smallest].abs().max() > 0
    assert plain[others].abs().max() > 0


def test_a_student_that_is_the_teacher_gives_no_zero_by_zero() -> None:
    teacher = noise(6, 10).requires_grad_()
    loss = EntropyMargins(lower=0.25)(seen(teacher, teacher.detach()))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.25, abs=0.2)  # H' is rounding, or zero
    assert teacher.grad is not None
    assert teacher.grad.isfinite().all()


@pytest.mark.parametrize(
    ("term", "sign"), [(DisagreementCrossEntropy(), -1), (AgreementCrossEntropy(), 1)]
)
def test_cross_entropies_of_difference_and_sum(term: Term, sign: int) -> None:
    teacher, student, labels = noise(8, 10), noise(8, 10, seed=1), torch.arange(8)
    hard = term(seen(teacher, student, labels))
    assert float(hard) == pytest.approx(plain_cross_entropy(teacher + sign * student, labels))
    soft = term(seen(teacher, student, F.one_hot(labels, 10).float()))
    torch.testing.assert_close(soft, hard)


def test_the_generators_terms_want_images_that_the_student_does_not_know_yet() -> None:
    teacher, labels = 4 * F.one_hot(torch.arange(4), 4).float(), torch.arange(4)
    knows, does_not = teacher.clone(), torch.zeros(4, 4)
    disagreement, agreement = DisagreementCrossEntropy(), AgreementCrossEntropy()
    assert disagreement(seen(teacher, does_not, labels)) < disagreement(
        seen(teacher, knows, labels)
    )
    assert agreement(seen(teacher, knows, labels)) < agreement(seen(teacher, does_not, labels))


@pytest.mark.parametrize("settings", [{"lower": -0.1}, {"upper": 1.2}, {"upper": 0.05}])
def test_margins_out_of_order_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        EntropyMargins(**settings)


# Method: wait in epochs, rate, epochs at which it falls, temperature, a_ds, l.
RELEASED = {
    "adadfq": (4, 1e-4, [100, 200, 300], 20, 0.2, 0.1),
    "adadfq_imagenet": (50, 1e-5, [350], 5, 0.2, 0.1),
    "adadfq_imagenet_resnet50": (100, 1e-4, [150, 300], 5, 0.2, 0.4),
    "adasg": (4, 1e-4, [100, 200, 300], 20, 0.1, 0.3),
    "adasg_imagenet": (50, 1e-5, [350], 5, 0.1, 0.3),
}


@pytest.mark.parametrize("name", RELEASED)
def test_constants_are_those_of_the_released_code(name: str) -> None:
    wait, rate, falls, temperature, disagreement, lower = RELEASED[name]
    config = composed(f"method={name}", "schedule=released")
    assert config.order == ["calibration", "alternation"]
    assert config.method.certainty == "code"
    calibration, alternation = config.stages["calibration"], config.stages["alternation"]
    assert calibration.steps == wait * 200
    assert alternation.steps == (400 - wait) * 200
    made, learned = alternation.synthesis.terms, alternation.distillation
    weights = {key: term.weight for key, term in made.items()}
    assert weights == {"bns": 1, "margins": 1, "disagreement": disagreement, "agreement": 0.1}
    assert (made["margins"].lower, made["margins"].upper) == (lower, 0.8)
    assert learned.terms["kd"].temperature == temperature
    assert learned.optimizer.lr == rate
    assert learned.learning_rate.milestones == [(epoch - wait) * 200 for epoch in falls]
    assert config.sources["generator"].batch_size == learned.batch_size == 16
    conditioning = "batch_norm" if "imagenet" in name else "embedding"
    assert config.sources["generator"].conditioning == conditioning


class Steps(Callback):
    """Keeps what every step measured, and the weights of both that learn."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.scalars: list[dict[str, float]] = []
        self.student: list[Tensor] = []
        self.generator: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        self.stages.append(module.progress.stage)
        self.scalars.append({name: float(value) for name, value in module.outcome.scalars.items()})
        for kept, of in ((self.student, module.student), (self.generator, module.source)):
            kept.append(torch.cat([p.detach().flatten().clone() for p in of.parameters()]))


@pytest.mark.parametrize(
    ("method", "quantizer"), [("adadfq", "minmax"), ("adadfq", "lsq"), ("adasg", "minmax")]
)
def test_generator_and_student_take_turns_in_two_steps(method: str, quantizer: str) -> None:
    module = build_module(
        small(f"method={method}", f"quantizer={quantizer}", "schedule.student_steps=2")
    )
    steps = Steps()
    fit(module, [steps])
    assert steps.stages == ["calibration"] * 2 + ["alternation"] * 2
    assert set(steps.scalars[0]) == {"calibration/bns", "calibration/cross_entropy"}
    made = {f"synthesis/{name}" for name in ("bns", "margins", "disagreement", "agreement")}
    assert set(steps.scalars[-1]) == {*made, "distillation/kd", "distillation/learning_rate"}
    assert steps.scalars[-1]["distillation/kd"] < 0
    # While the ranges are calibrated the student waits; then both move.
    assert not torch.equal(steps.generator[0], steps.generator[1])
    assert not torch.equal(steps.generator[2], steps.generator[3])
    assert not torch.equal(steps.student[2], steps.student[3])


def test_the_generator_sees_the_student_only_once_it_is_calibrated() -> None:
    """As the methods' recipes say of their calibration; the refusal is one line."""
    config = small("method=adadfq")
    config.stages["calibration"].terms["margins"] = EntropyMargins()
    with pytest.raises(ConfigurationError, match=r"stages.calibration.*calibrated") as refusal:
        build_module(config)
    assert "\n" not in str(refusal.value)
