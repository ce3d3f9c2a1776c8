from __future__ import annotations

import torch
from torch import Tensor, nn

from hast_lightning.safeguard.closeness import closeness, relative_logit_error
from hast_lightning.training.evaluation import LARGEST


def logits(seed: int) -> Tensor:
    return torch.randn(50, 10, generator=torch.Generator().manual_seed(seed))


def test_a_student_like_its_teacher_has_no_error() -> None:
    assert relative_logit_error(logits(0), logits(0)) == 0


def test_a_constant_on_all_logits_of_an_image_is_no_error() -> None:
    shifted = logits(0) + torch.arange(50.0)[:, None]
    assert relative_logit_error(shifted, logits(0)) < 1e-12


def test_the_mean_answer_has_an_error_of_one() -> None:
    teacher = logits(0)
    centered = teacher - teacher.mean(dim=1, keepdim=True)
    constant = centered.mean(dim=0).expand_as(teacher)
    assert abs(relative_logit_error(constant, teacher) - 1) < 1e-6


def test_it_is_the_formula_in_plain_python() -> None:
    student, teacher = logits(1)[:4, :3].double(), logits(2)[:4, :3].double()
    s = [[v - sum(row) / 3 for v in row] for row in student.tolist()]
    t = [[v - sum(row) / 3 for v in row] for row in teacher.tolist()]
    mean = [sum(row[c] for row in t) / 4 for c in range(3)]
    error = sum((s[n][c] - t[n][c]) ** 2 for n in range(4) for c in range(3))
    spread = sum((t[n][c] - mean[c]) ** 2 for n in range(4) for c in range(3))
    assert abs(relative_logit_error(student, teacher) - error / spread) < 1e-12


def test_nan_is_the_largest_error() -> None:
    broken = logits(0)
    broken[3, 2] = float("nan")
    assert relative_logit_error(broken, logits(0)) == LARGEST
    assert relative_logit_error(1e30 * logits(1), logits(0)) == LARGEST


def test_one_image_has_no_spread_and_an_error_all_the_same() -> None:
    teacher, student = logits(0)[:1].double(), logits(1)[:1].double()
    t, s = (each - each.mean() for each in (teacher, student))
    expected = float((s - t).square().sum() / t.square().sum())
    assert abs(relative_logit_error(student, teacher) - expected) < 1e-12
    alike = teacher.expand(5, -1)
    assert abs(relative_logit_error(student.expand(5, -1), alike) - expected) < 1e-9


def test_a_teacher_that_says_nothing_has_no_error_but_by_another_answer() -> None:
    nothing = torch.zeros(3, 4)
    assert relative_logit_error(nothing, nothing) == 0
    assert relative_logit_error(torch.eye(4)[:3], nothing) == LARGEST


def test_agreement_is_in_percent_over_all_images() -> None:
    inputs = torch.eye(4).repeat(50, 1)
    teacher, student = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        teacher.weight.copy_(torch.eye(4))
        student.weight.copy_(torch.eye(4)[[0, 1, 3, 2]])
    found = closeness(teacher, student, inputs)
    assert found.agreement == 50
    assert found.error > 0
