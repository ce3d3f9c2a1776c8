"""Accuracy and agreement on predictions that are known beforehand."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from hast_lightning.core.outputs import Outputs
from hast_lightning.data.texts import next_tokens
from hast_lightning.errors import DivergenceError, LostProcessError
from hast_lightning.training import evaluation
from hast_lightning.training.evaluation import (
    LARGEST,
    Confusion,
    Evaluation,
    evaluate,
    evaluate_values,
    relative_error,
    relative_errors,
)
from tests.processes import Forked

CPU = torch.device("cpu")


class Script(nn.Module):
    """Predicts the class that is written in the image's pixel at ``position``."""

    def __init__(self, position: int, num_classes: int = 4) -> None:
        super().__init__()
        self.position, self.num_classes = position, num_classes

    def forward(self, images: Tensor) -> Tensor:
        classes = images.flatten(1)[:, self.position].long()
        return 5 * nn.functional.one_hot(classes, self.num_classes).float() - 1


def batches(
    teacher: list[int], student: list[int], labels: list[int], size: int
) -> list[tuple[Tensor, Tensor]]:
    images = torch.tensor([teacher, student]).T.reshape(-1, 1, 1, 2).float()
    pairs = zip(images.split(size), torch.tensor(labels).split(size), strict=True)
    return list(pairs)


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_shares_are_counted_whatever_the_batches(size: int) -> None:
    labels = [0, 1, 2, 3, 0, 1, 2, 3]
    teacher = [0, 1, 2, 3, 0, 1, 3, 0]  # 6 right
    student = [0, 1, 0, 0, 1, 1, 3, 3]  # 4 right, 4 as the teacher
    result = evaluate(Script(0), Script(1), batches(teacher, student, labels, size), 4, CPU)
    assert result == Evaluation(75.0, 50.0, 50.0, 8)


def test_the_confusion_counts_which_class_became_which() -> None:
    teacher, student = [0, 0, 1, 3, 3, 3], [0, 2, 1, 3, 0, 0]
    counts = Confusion(4)
    evaluate(Script(0), Script(1), batches(teacher, student, [0] * 6, 4), 4, CPU, counts)
    expected = [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 1]]
    assert counts.compute().tolist() == expected


def test_agreement_does_not_need_right_answers() -> None:
    wrong = [1, 2, 3, 0]
    result = evaluate(Script(0), Script(1), batches(wrong, wrong, [0, 1, 2, 3], 2), 4, CPU)
    assert result == Evaluation(0.0, 0.0, 100.0, 4)


def test_rare_classes_do_not_weigh_more() -> None:
    # Nine of the first class, all right, and one of the second, wrong: 90 %, not 50 %.
    result = evaluate(Script(0), Script(1), batches([0] * 10, [0] * 10, [0] * 9 + [1], 4), 2, CPU)
    assert result.teacher_top1 == result.student_top1 == pytest.approx(90)


def test_nothing_is_differentiated_and_the_networks_stay_as_they_are() -> None:
    teacher, student = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)), nn.Sequential(nn.Flatten())
    student.append(nn.Linear(2, 3)).train()
    graphs = []
    student.register_forward_hook(lambda _, __, output: graphs.append(output.requires_grad))
    result = evaluate(teacher, student, [(torch.randn(5, 1, 1, 2), torch.arange(5) % 3)], 3, CPU)
    assert result.images == 5
    assert graphs == [False]
    assert student.training


def test_a_process_that_is_lost_while_shares_are_added_up_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gather(*_: object) -> list[Tensor]:
        raise RuntimeError("Connection closed by peer\nand more lines")

    monkeypatch.setattr(evaluation, "world_size", lambda: 2)
    monkeypatch.setattr(evaluation, "gather_all_tensors", gather)
    with pytest.raises(LostProcessError, match=r"lost another one.*Connection closed by peer\)"):
        evaluate(Script(0), Script(1), batches([0], [0], [0], 1), 4, CPU)
    counts = Confusion(4)
    with pytest.raises(LostProcessError):
        evaluate(Script(0), Script(1), batches([0], [0], [0], 1), 4, CPU, counts)
    counts.update(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(LostProcessError):
        counts.compute()


def test_the_error_of_values_is_relative_to_the_spread_over_samples() -> None:
    found, expected = torch.randn(2, 5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    distance = spread = 0.0
    for n in range(5):
        for place in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)):
            c, h, w = place.tolist()
            mean = float(expected[:, c, h, w].mean())
            distance += float(found[n, c, h, w] - expected[n, c, h, w]) ** 2
            spread += (float(expected[n, c, h, w]) - mean) ** 2
    assert relative_error(found, expected) == pytest.approx(distance / spread, rel=1e-4)
    parts = zip(found.split(2), expected.split(2), strict=True)
    in_parts = relative_errors(parts, Outputs.alone((2, 3, 3)))
    assert in_parts == {"": pytest.approx(distance / spread, rel=1e-4)}
    assert relative_error(expected, expected) == 0
    mean = expected.mean(0, keepdim=True).expand_as(expected)
    assert relative_error(mean, expected) == pytest.approx(1, rel=1e-5)
    assert relative_error(found, torch.zeros_like(found)) == LARGEST
    assert relative_error(found * torch.nan, expected) == LARGEST


def test_values_are_compared_over_batches_as_all_at_once() -> None:
    inputs = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    teacher, student = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
    result = evaluate_values(
        teacher, student, torch.split(inputs, 4), Outputs.alone((2, 2, 2)), CPU
    )
    assert (result.teacher_top1, result.student_top1, result.agreement) == (None, None, None)
    assert result.images == 10
    with torch.no_grad():
        expected = relative_error(student(inputs), teacher(inputs))
    assert result.error == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():
        student.weight.fill_(torch.nan)
    with pytest.raises(DivergenceError):
        evaluate_values(teacher, student, [inputs], Outputs.alone((2, 2, 2)), CPU)


def test_each_of_several_outputs_is_compared_with_its_own_spread() -> None:
    outputs = Outputs(("a", "b"), ((3,), (2, 2)), ("dict", (("a", "a"), ("b", "b"))))
    expected, found = torch.randn(2, 8, 7, generator=torch.Generator().manual_seed(0))
    # That the second is a hundred times as large changes nothing.
    scale = torch.tensor([1.0] * 3 + [100.0] * 4)
    result = evaluate_values(
        lambda some: some * scale,
        lambda some: (some + found - expected) * scale,
        [expected],
        outputs,
        CPU,
    )
    parts = {"a": slice(0, 3), "b": slice(3, 7)}
    for name, part in parts.items():
        each = relative_error(found[:, part], expected[:, part])
        assert result.errors[name] == pytest.approx(each, rel=1e-4)
    assert result.error == pytest.approx(sum(result.errors.values()) / 2)


class Same(nn.Module):
    """Says that each token is followed by itself, with a logit of its own."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, texts: Tensor) -> Tensor:
        return self.logit * nn.functional.one_hot(texts, 5).float().transpose(1, 2)


def evaluate_a_share() -> None:
    """One of two processes, which go over one batch of texts: the second has none."""
    distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
    texts = torch.tensor([[0, 0, 1], [2, 2, 2]])
    share = [(texts, next_tokens(texts))][distributed.get_rank() :]
    found = evaluate(Same(1.0), Same(2.0), share, 5, CPU)
    print(json.dumps([found.images, found.teacher_perplexity, found.student_perplexity]))
    distributed.destroy_process_group()


@pytest.mark.timeout(300)
def test_a_process_without_texts_has_the_perplexity_of_all(tmp_path: Path) -> None:
    from tests.test_devices import both_ranks

    both = [Forked(tmp_path, environment=rank, become=evaluate_a_share) for rank in both_ranks()]
    try:
        printed = [process.communicate(timeout=200)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], printed
    # Of four tokens three are followed by themselves.
    expected = [math.exp(math.log(math.exp(x) + 4) - 0.75 * x) for x in (1.0, 2.0)]
    for text in printed:
        assert json.loads(text.splitlines()[-1]) == pytest.approx([2, *expected], rel=1e-5)
