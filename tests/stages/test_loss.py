"""The loss of a step: terms bound to networks and a source, weighted, added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Batch, Needs, Seen
from hast_lightning.core.source import Source
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ConfigurationError
from hast_lightning.sources.noise import Noise
from hast_lightning.stages.loss import (
    active_terms,
    active_transforms,
    bind_terms,
    transformed,
    weighted_loss,
)
from hast_lightning.terms.channel_attention import ChannelAttention, alignment_losses
from hast_lightning.terms.cross_entropy import CrossEntropy, HardCrossEntropy
from hast_lightning.terms.kl import KL, kl_divergence
from tests.parts import seen


@dataclass(eq=False, repr=False, kw_only=True)
class Fixed(Term):
    """Needs what it is told to, and gives what it is told to."""

    needs: Any = Needs()  # noqa: RUF009  # a tuple
    value: Any = 1.0

    def forward(self, seen: Seen) -> Tensor:
        return torch.tensor(self.value) + 0 * seen.teacher.logits.sum()


@dataclass(eq=False, repr=False, kw_only=True)
class Added(Transform):
    """Adds a number to the inputs."""

    number: float = 0.0

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        return batch._replace(inputs=batch.inputs + self.number)


def source(labels: str = "hard") -> Source:
    class Labeled(Noise):
        label_kind = labels

    return Labeled()


def bound(*needs: Needs, given: Source | None = None) -> Needs:
    terms = {f"term{i}": Fixed(needs=need) for i, need in enumerate(needs)}
    nothing: Any = None
    return bind_terms(terms, nothing, nothing, given or source(), "stages.any.terms")


# --- what terms need -------------------------------------------------------------------------


def test_needs_are_united_and_named_once_in_order() -> None:
    first = Needs(teacher=("b", "a"), labels="some")
    second = Needs(teacher=("a", "c"), student=("x",), batch_norms=True)
    united = bound(first, second, Needs(student=("y", "x")))
    assert united.teacher == ("b", "a", "c")
    assert united.student == ("x", "y")
    assert united.batch_norms


def test_the_student_runs_only_where_a_term_asks_for_it() -> None:
    assert bound(Needs(teacher=("a",))) == Needs(teacher=("a",))
    assert bound(Needs(), Needs(student=())).student == ()


@pytest.mark.parametrize(
    ("wanted", "given", "message"),
    [
        ("hard", "soft", "needs hard labels, and a source of kind noise gives soft ones"),
        ("hard", "none", "needs hard labels, and a source of kind noise gives none"),
        ("some", "none", "needs labels, and a source of kind noise gives none"),
    ],
)
def test_labels_that_a_source_does_not_give_are_refused(
    wanted: str, given: str, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bound(Needs(), Needs(labels=wanted), given=source(given))
    assert str(caught.value) == f"stages.any.terms.term1: the term  {message}"


@pytest.mark.parametrize(
    ("wanted", "given"),
    [("hard", "hard"), ("some", "hard"), ("some", "soft"), ("none", "none"), ("none", "soft")],
)
def test_labels_that_a_source_gives_are_taken(wanted: str, given: str) -> None:
    bound(Needs(labels=wanted), given=source(given))


def test_the_message_says_which_term_it_is() -> None:
    nothing: Any = None
    for term in (HardCrossEntropy(), CrossEntropy()):
        with pytest.raises(ConfigurationError, match=rf"^key\.mine: the term {term.kind} needs"):
            bind_terms({"mine": term}, nothing, nothing, source("none"), "key")


def test_finished_samples_that_a_source_does_not_make_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"term0: .* source of kind noise finishes none"):
        bound(Needs(finished=True))


# --- switches and weights --------------------------------------------------------------------


def test_a_term_is_left_out_by_its_switch_or_by_weight_zero() -> None:
    terms = {"a": Fixed(), "b": Fixed(enabled=False), "c": Fixed(weight=0), "d": Fixed(weight=2)}
    assert list(active_terms(terms)) == ["a", "d"]


def test_transforms_follow_each_other_and_those_by_gradient_are_left_out() -> None:
    by_gradient = Added(number=100.0)
    vars(by_gradient)["by_gradient"] = True
    transforms = {"a": Added(number=1.0), "b": Added(number=2.0, enabled=False), "c": by_gradient}
    active = active_transforms(transforms)
    assert list(active) == ["a", "c"]
    assert float(transformed(Batch(torch.zeros(1)), active).inputs) == 1


def example(weights: Tensor | None = None) -> Seen:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, requires_grad=True)

    features = [{"one": noise(4, 3, 2, 2), "two": noise(4, 2, 1, 1)} for _ in range(2)]
    return seen(
        noise(4, 5),
        noise(4, 5),
        targets=torch.tensor([0, 4, 2, 2]),
        weights=weights,
        of_teacher=features[0],
        of_student=features[1],
    )


def hast(**changes: float) -> dict[str, Term]:
    alignment = ChannelAttention(weight=changes.get("alignment", 1000.0))
    alignment._taps = ("one", "two")
    alignment.name_parts(alignment._taps)
    return {"kd": KL(weight=changes.get("kd", 20.0)), "alignment": alignment}


def test_hast_is_twenty_kl_and_a_thousand_alignment() -> None:
    """Methods of HAST: ``L = 20 tau^2 KL + 1000 FA`` at temperature 20, without labels."""
    given = example()
    assert given.student is not None
    loss = weighted_loss(hast(), given)
    kd = 20 * kl_divergence(given.student.logits, given.teacher.logits, 20)
    student, teacher = (list(t.values.values()) for t in (given.student, given.teacher))
    blocks = 1000 * alignment_losses(student, teacher)
    torch.testing.assert_close(loss.total, kd + blocks.sum())
    torch.testing.assert_close(loss.values, {"kd": kd, "alignment": blocks.sum()})
    # A sum over blocks is given block by block too.
    assert set(loss.parts) == {"alignment"}
    names, summands = loss.parts["alignment"]
    assert names == ("one", "two")
    torch.testing.assert_close(summands, blocks)


def test_gdfq_is_cross_entropy_and_kl_averaged_over_classes_too() -> None:
    given = example()
    assert given.student is not None and given.batch.targets is not None
    terms = {"kd": KL(reduction="mean"), "cross_entropy": CrossEntropy()}
    kd = kl_divergence(given.student.logits, given.teacher.logits, 20, "batchmean") / 5
    expected = F.cross_entropy(given.student.logits, given.batch.targets) + kd
    torch.testing.assert_close(weighted_loss(terms, given).total, expected)


def test_the_loss_is_the_sum_of_what_it_reports_and_only_it_has_a_graph() -> None:
    given = example()
    loss = weighted_loss(hast(), given)
    torch.testing.assert_close(sum(loss.values.values()), loss.total.detach())
    reported = [*loss.values.values(), *(summands for _, summands in loss.parts.values())]
    assert not any(value.requires_grad for value in reported)
    loss.total.backward()
    assert given.student is not None
    assert given.student.logits.grad is not None
    assert all(values.grad is not None for values in given.student.values.values())


def test_weights_of_terms_scale_their_own_term() -> None:
    once = weighted_loss(hast(), example()).values
    twice = weighted_loss(hast(kd=40.0, alignment=2000.0), example()).values
    torch.testing.assert_close(twice, {name: 2 * value for name, value in once.items()})


def test_a_sample_of_weight_zero_is_as_if_it_were_not_there() -> None:
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0])
    given = example(weights)
    assert given.student is not None
    terms = {**hast(), "cross_entropy": CrossEntropy()}
    values = weighted_loss(terms, given).values
    kept = weights.bool()
    of_student, of_teacher = (
        {name: value[kept] for name, value in trace.values.items()}
        for trace in (given.student, given.teacher)
    )
    less = seen(
        given.teacher.logits[kept],
        given.student.logits[kept],
        targets=given.batch.targets[kept],
        of_student=of_student,
        of_teacher=of_teacher,
    )
    torch.testing.assert_close(values, weighted_loss(terms, less).values)


def test_half_precision_logits_give_float32_values() -> None:
    given = example()
    assert given.student is not None
    teacher, student = (
        trace._replace(logits=trace.logits.bfloat16()) for trace in (given.teacher, given.student)
    )
    loss = weighted_loss(
        {**hast(), "cross_entropy": CrossEntropy()},
        given._replace(teacher=teacher, student=student),
    )
    assert {value.dtype for value in loss.values.values()} == {torch.float32}
