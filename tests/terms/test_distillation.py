"""The student's loss: which terms there are, their weights, their sum."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hast_lightning.config import (
    AlignmentConfig,
    DistillationConfig,
    DistillationTermConfig,
)
from hast_lightning.terms.channel_attention import alignment_loss
from hast_lightning.terms.distillation import DistillationPair, build_terms, distillation_loss
from hast_lightning.terms.kl import kl_divergence

NO_KD = DistillationTermConfig(weight=0)
NO_ALIGNMENT = AlignmentConfig(enabled=False)


def example(with_features: bool = True) -> DistillationPair:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, requires_grad=True)

    features = [[noise(4, 3, 2, 2)] if with_features else [] for _ in range(2)]
    return DistillationPair(noise(4, 5), noise(4, 5), *features, torch.tensor([0, 4, 2, 2]))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (DistillationConfig(), {"kd", "alignment"}),
        (DistillationConfig(alignment=NO_ALIGNMENT), {"kd"}),
        (DistillationConfig(alignment=AlignmentConfig(weight=0)), {"kd"}),
        (DistillationConfig(kd=NO_KD), {"alignment"}),
        (
            DistillationConfig(kd=NO_KD, cross_entropy_weight=1, alignment=NO_ALIGNMENT),
            {"cross_entropy"},
        ),
        (DistillationConfig(cross_entropy_weight=0.5), {"kd", "cross_entropy", "alignment"}),
    ],
)
def test_every_switch_takes_its_term_away(config: DistillationConfig, names: set[str]) -> None:
    assert set(build_terms(config)) == names


def test_hast_is_twenty_kl_and_a_thousand_alignment() -> None:
    """Methods of HAST: ``L = 20 tau^2 KL + 1000 FA`` at temperature 20, without labels."""
    pair = example()
    loss, values, _ = distillation_loss(build_terms(DistillationConfig()), pair)
    kd = 20 * kl_divergence(pair.student_logits, pair.teacher_logits, 20)
    alignment = 1000 * alignment_loss(pair.student_features, pair.teacher_features)
    torch.testing.assert_close(loss, kd + alignment)
    torch.testing.assert_close(values["kd"], kd.detach())
    torch.testing.assert_close(values["alignment"], alignment.detach())


def test_gdfq_is_cross_entropy_and_kl_averaged_over_classes_too() -> None:
    config = DistillationConfig(
        kd=DistillationTermConfig(weight=1, temperature=20, reduction="mean"),
        cross_entropy_weight=1,
        alignment=NO_ALIGNMENT,
    )
    pair = example(with_features=False)
    loss, values, _ = distillation_loss(build_terms(config), pair)
    kd = kl_divergence(pair.student_logits, pair.teacher_logits, 20, "batchmean") / 5
    torch.testing.assert_close(loss, F.cross_entropy(pair.student_logits, pair.labels) + kd)
    assert set(values) == {"kd", "cross_entropy"}


def test_the_loss_is_the_sum_of_what_it_reports_and_only_it_has_a_graph() -> None:
    pair = example()
    terms = build_terms(DistillationConfig(cross_entropy_weight=3))
    loss, values, _ = distillation_loss(terms, pair)
    torch.testing.assert_close(sum(values.values()), loss.detach())
    assert not any(value.requires_grad for value in values.values())
    loss.backward()
    assert pair.student_logits.grad is not None
    assert pair.student_features[0].grad is not None


def test_weights_scale_their_own_term() -> None:
    pair = example()
    base = DistillationConfig(cross_entropy_weight=1)
    double = DistillationConfig(
        kd=DistillationTermConfig(weight=40),
        cross_entropy_weight=2,
        alignment=AlignmentConfig(weight=2000),
    )
    once, twice = (distillation_loss(build_terms(c), pair)[1] for c in (base, double))
    torch.testing.assert_close(twice, {name: 2 * value for name, value in once.items()})


def test_half_precision_logits_give_float32_terms() -> None:
    pair = example()
    half = pair._replace(
        student_logits=pair.student_logits.bfloat16(), teacher_logits=pair.teacher_logits.bfloat16()
    )
    _, values, _ = distillation_loss(build_terms(DistillationConfig(cross_entropy_weight=1)), half)
    assert {value.dtype for value in values.values()} == {torch.float32}


def test_a_sum_over_blocks_is_given_block_by_block_too() -> None:
    pair = example()
    twice = pair._replace(
        student_features=[*pair.student_features, *pair.teacher_features],
        teacher_features=[*pair.teacher_features, *pair.teacher_features],
    )
    loss = distillation_loss(build_terms(DistillationConfig(cross_entropy_weight=1)), twice)
    assert set(loss.blocks) == {"alignment"}
    first, second = loss.blocks["alignment"]
    alignment = 1000 * alignment_loss(pair.student_features, pair.teacher_features)
    torch.testing.assert_close(first, alignment.detach())
    assert second == 0
    assert loss.values["alignment"] == first
    assert not loss.blocks["alignment"].requires_grad


def test_the_answers_have_no_graph() -> None:
    pair = example()
    answers = pair.answers()
    assert not answers.student_logits.requires_grad and not answers.teacher_logits.requires_grad
    assert torch.equal(answers.student_logits, pair.student_logits)
    assert torch.equal(answers.labels, pair.labels)
