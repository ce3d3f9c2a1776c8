"""Which student steps may take a batch apart, and which terms look at it as a whole."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from hast_lightning.config import import_parts
from hast_lightning.core.part import part_class
from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError, MemoryLimitError
from hast_lightning.stages.distill import Distill
from tests.parts import seen
from tests.small_runs import build_module, fit, small

OF_LOGITS = (
    *("kl", "cross_entropy", "masked_cross_entropy", "difference_entropy", "gaussian_margin"),
    *("disagreement_cross_entropy", "agreement_cross_entropy", "hard_cross_entropy"),
    *("filtered_cross_entropy", "entropy_margins", "raw_outputs", "logit_range"),
)
"""Terms that look at labels and both networks' logits alone."""
OTHERS = {
    "raw_outputs": ("+term@stages.distillation.terms.own=raw_outputs",),
    "masked_kl": ("+term@stages.distillation.terms.own=masked_kl",),
    "entropy_margins": ("+term@stages.distillation.terms.own=entropy_margins",),
}


@pytest.mark.parametrize("kind", OF_LOGITS)
def test_a_term_that_is_taken_apart_is_the_sum_of_its_parts(kind: str) -> None:
    """And one that says that it looks at the whole is not, or it need not say so."""
    import_parts()
    term = part_class("term", kind)()
    assert isinstance(term, Term)
    teacher, student = 2 * torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 5

    def loss(samples: slice) -> Tensor:
        return term(seen(teacher[samples], student[samples], targets=labels[samples])).sum()

    ends = (slice(0, 5), slice(5, 9), slice(9, 12))
    added = sum(float((each.stop - each.start) / 12 * loss(each)) for each in ends)
    whole = float(loss(slice(0, 12)))
    assert (added == pytest.approx(whole, rel=1e-4)) == term.by_sample


@pytest.mark.parametrize(
    ("words", "place", "kind"),
    [
        (("method=plf",), "cross_entropy", "filtered_cross_entropy"),
        *((("method=hast", *words), "own", kind) for kind, words in OTHERS.items()),
    ],
)
def test_parts_of_a_batch_are_refused_where_a_term_looks_at_the_whole(
    words: tuple[str, ...], place: str, kind: str
) -> None:
    batch = "stages.distillation.batch_size=8"
    with pytest.raises(ConfigurationError) as refused:
        build_module(small(*words, batch, "trainer.micro_batch=4"))
    assert str(refused.value) == (
        f"trainer.micro_batch=4: the loss of stages.distillation.terms.{place}, {kind}, is no "
        "mean over samples, so that those of parts do not add up to it; leave it out and lower "
        f"{batch}"
    )


def test_parts_as_large_as_the_batch_are_none() -> None:
    module = build_module(
        small("method=plf", "stages.distillation.batch_size=8", "trainer.micro_batch=8")
    )
    fit(module)
    assert len(module.outcome.answers[""]) == 1


def test_a_whole_batch_is_not_halved_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build_module(
        small(
            *("method=plf", "stages.distillation.batch_size=8"),
            "trainer.halve_on_out_of_memory=true",
        )
    )

    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Distill, "_backward_all", exhausted)
    message = "with 8 images at once: lower stages.distillation.batch_size"
    with pytest.raises(MemoryLimitError, match=message):
        fit(module)
    assert module.micro_batch is None


def test_an_attempt_that_ran_out_of_memory_holds_nothing_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("stages.distillation.batch_size=8", "trainer.halve_on_out_of_memory=true")
    module = build_module(small(*words))
    whole, held = Distill._backward_all, list[weakref.ref[Tensor]]()

    def limited(stage: Any, bench: Any, batch: Any, *rest: Any) -> None:
        assert all(each() is None for each in held)
        activations = torch.zeros(len(batch.inputs))
        if len(activations) > 2:
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        whole(stage, bench, batch, *rest)

    monkeypatch.setattr(Distill, "_backward_all", limited)
    fit(module)
    assert (module.micro_batch, len(held)) == (2, 2)


FLOAT = (
    *("quantizer.bits=32", "stages.calibration.terms.bns.enabled=false"),
    "order=[synthesis,distillation]",
)


def test_a_new_student_is_trained_by_any_method_without_its_calibration() -> None:
    module = build_module(small(*FLOAT))
    fit(module)
    found = module.student.state_dict()
    assert any(bool(value.any()) for name, value in found.items() if name.endswith("running_mean"))


def test_a_new_student_learns_from_whole_batches_and_has_no_hook_of_integers() -> None:
    whole = r"^trainer\.micro_batch=2: BatchNorms of a new student learn from whole batches"
    with pytest.raises(ConfigurationError, match=whole):
        build_module(small(*FLOAT, "trainer.micro_batch=2"))
    with pytest.raises(ConfigurationError, match="hook=gradient_inundation is for a student that"):
        build_module(small(*FLOAT, "+hook@stages.distillation.hook=gradient_inundation"))
