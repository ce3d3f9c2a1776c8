"""PLF's term against plain Python, its empty subsets, and a few steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.plf import FilteredCrossEntropy, uncertainty
from tests.composition import composed
from tests.small_runs import build_module, fit, small


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(
    teacher: Tensor, student: Tensor, step: int = 1, total: int = 10, weights: Tensor | None = None
) -> Seen:
    batch = Batch(noise(len(teacher), 1), None, weights)
    return Seen(batch, Trace(teacher, {}), Trace(student, {}), Progress("distill", step, total))


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def plain(teacher: Tensor, student: Tensor, threshold: float, beta: float) -> list[float]:
    reliable, others = [], []
    for row, learned in zip(teacher.tolist(), student.tolist(), strict=True):
        shares, answers = softmax(row), softmax(learned)
        entropy = -sum(p * math.log(p) for p in shares) / math.log(len(row))
        first, second = sorted(range(len(row)), key=lambda c: -shares[c])[:2]
        if entropy <= threshold:
            reliable.append(-math.log(answers[first]))
        else:
            both = shares[first] + shares[second]
            loss = shares[first] / both * math.log(answers[first])
            others.append(-loss - shares[second] / both * math.log(answers[second]))
    means = [sum(some) / len(some) if some else 0.0 for some in (reliable, others)]
    return [means[0], beta * means[1]]


def test_uncertainty_lies_between_zero_and_one() -> None:
    logits = torch.stack([torch.zeros(6), 100 * torch.eye(6)[0]])
    torch.testing.assert_close(uncertainty(logits), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(("step", "threshold"), [(1, 0.5), (6, 0.35), (10, 0.23)])
def test_samples_are_filtered_by_a_threshold_that_tightens(step: int, threshold: float) -> None:
    teacher = noise(40, 5) * torch.linspace(0.5, 6, 40)[:, None]
    student = noise(40, 5, seed=1)
    found = FilteredCrossEntropy(lower=0.2, upper=0.5, beta=0.3)(seen(teacher, student, step))
    expected = plain(teacher, student, threshold, 0.3)
    torch.testing.assert_close(found, torch.tensor(expected))
    sure = uncertainty(teacher) <= threshold
    assert 0 < int(sure.sum()) < 40


@pytest.mark.parametrize("scale", [0.0, 50.0])
def test_no_sample_of_one_kind_counts_nothing_and_has_no_gradient_of_nan(scale: float) -> None:
    student = noise(6, 5, seed=1).requires_grad_()
    found = FilteredCrossEntropy()(seen(scale * torch.eye(5)[torch.arange(6) % 5], student))
    assert (found > 0).tolist() == [scale > 0, scale == 0]
    found.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()


def test_a_sample_of_no_weight_does_not_count() -> None:
    teacher, student = noise(8, 5) * 2, noise(8, 5, seed=1)
    weights = torch.tensor([1.0] * 5 + [0.0] * 3)
    term = FilteredCrossEntropy()
    torch.testing.assert_close(
        term(seen(teacher, student, weights=weights)), term(seen(teacher[:5], student[:5]))
    )


@pytest.mark.parametrize("settings", [{"beta": -1.0}, {"upper": 1.2}, {"upper": 0.05}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        FilteredCrossEntropy(**settings)


# Method: gamma, T_l, T_u, beta, mu, rate.
PAPER = {
    "plf": (10, 0.2, 0.5, 0.3, 100, 1e-3),
    "plf_imagenet": (0.1, 0.1, 0.4, 0.5, 4000, 1e-5),
}


@pytest.mark.parametrize("name", PAPER)
def test_constants_are_those_of_the_paper(name: str) -> None:
    config = composed(f"method={name}", "schedule=released")
    made, learned = config.stages["synthesis"].terms, config.stages["distillation"]
    filtered = learned.terms["cross_entropy"]
    found = (
        *(made["cross_entropy"].weight, filtered.lower, filtered.upper, filtered.beta),
        *(learned.terms["alignment"].weight, learned.optimizer.lr),
    )
    assert found == PAPER[name]
    assert (config.sources["bank"].size, config.sources["bank"].iterations) == (5120, 1000)
    assert {term.weight for key, term in learned.terms.items() if key != "alignment"} == {1}


def test_a_run_logs_both_kinds_of_samples() -> None:
    module = build_module(small("method=plf", "quantizer=minmax"))
    fit(module)
    names, values = module.outcome.parts["distillation/cross_entropy"]
    assert tuple(names) == ("reliable", "others")
    assert values.isfinite().all() and values.sum() > 0
