"""What a file has to do before it gets its name: compute what the student computes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hast_lightning.config import ExportConfig
from hast_lightning.errors import ExportError
from hast_lightning.export.parity import (
    LEAST_IMAGES,
    Parity,
    compare,
    drawn_images,
    latencies,
    prove,
)

SHAPE = (1, 2, 3)
CLASSES = 6
Network = Callable[[Tensor], Tensor]


def pixels(images: Tensor) -> Tensor:
    """A student that puts out its pixels."""
    return images.flatten(1)


def image(*logits: float) -> Tensor:
    return torch.tensor(logits, dtype=torch.float32).view(1, *SHAPE)


def test_what_agrees_is_counted_over_all_batches() -> None:
    first = torch.cat([image(1, 0, -9, -9, -9, -9), image(0, 1, -9, -9, -9, -9)])
    batches = [first, image(3, 1, -9, -9, -9, -9)]
    shift = torch.tensor([1.5, 0, 0, 0, 0, 0])
    # The first image is lost, which led by 1; the others lead by 1 and 2.
    parity = compare(lambda images: pixels(images) - shift, pixels, batches, SHAPE)
    assert (parity.images, parity.agreeing, parity.compared) == (3, 2, 3 + LEAST_IMAGES - 3)
    assert (parity.lead, parity.lost_lead, parity.agreement) == (1.0, 1.0, 66.6667)
    assert parity.largest_difference == pytest.approx(1.5)


def test_the_deviation_is_that_of_the_median_image_in_spreads() -> None:
    images = torch.randn(1000, *SHAPE, generator=torch.Generator().manual_seed(0))
    spread = pixels(images).var(dim=1, correction=0).mean().sqrt()
    # On two images of five a logit is off by 3, on the others by 0.5.
    wrong = torch.where(torch.arange(1000) % 5 < 2, 3.0, 0.5)

    def exported(given: Tensor) -> Tensor:
        off = wrong[: len(given)] if len(given) == 1000 else torch.full((len(given),), 0.5)
        return pixels(given) + off[:, None] * torch.eye(CLASSES)[2]

    parity = compare(exported, pixels, [images], SHAPE)
    assert parity.compared == 1000 + 32
    assert parity.deviation == pytest.approx(float(0.5 / spread), rel=0.1)
    assert parity.largest_difference == pytest.approx(3)


def agreeing(images: int, others: int) -> Parity:
    return Parity(images, others, 0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("images", "agree", "least", "enough"),
    [
        (10_000, 9_990, 99.9, True),
        (10_000, 9_989, 99.9, False),
        (2_000, 1_998, 99.9, True),
        (1_999, 1_997, 99.9, False),
        (999, 998, 99.9, True),
        (1_017, 1_016, 99.9, True),
        (1_017, 1_015, 99.9, False),
        # One of few images.
        (6, 5, 99.9, True),
        (6, 4, 99.9, False),
        (6, 5, 100, False),
        (6, 6, 100, True),
        (6, 0, 0, True),
    ],
)
def test_at_most_a_thousandth_or_one_may_differ(
    images: int, agree: int, least: float, enough: bool
) -> None:
    assert agreeing(images, agree).agrees(least) is enough


WRONG: dict[str, tuple[Network, str]] = {
    "one class is off by half a spread": (
        lambda images: pixels(images) + 0.5 * torch.eye(CLASSES)[3],
        r"on the median of 256 images one differs by 0\.\d+ of the logits' spread, more than 0\.1 "
        r"\(export\.max_deviation\)",
    ),
    "a bias of all": (lambda images: pixels(images) + 1, "puts out other logits than the student"),
    "right one by one only": (
        lambda images: pixels(images) * (1 if len(images) == 1 else 0.7),
        "puts out other logits",
    ),
    "right in batches only": (
        lambda images: pixels(images) * (0.7 if len(images) == 1 else 1),
        "puts out other logits",
    ),
    "nothing": (lambda images: torch.zeros(len(images), CLASSES), "puts out other logits"),
    "NaN": (lambda images: pixels(images) * float("nan"), "puts out NaN or infinite logits"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("count", [0, 1, 6])
def test_a_file_that_computes_something_else_is_refused_with_the_number(
    wrong: str, count: int
) -> None:
    """However few images there are: the class of all of them may be right."""
    exported, message = WRONG[wrong]
    decided = torch.cat([image(9, 0, 1, 0, 1, 0)] * count) if count else torch.zeros(0, *SHAPE)
    with pytest.raises(ExportError, match=message) as refusal:
        prove("onnx", exported, pixels, [decided], SHAPE)
    assert "\n" not in str(refusal.value)


def test_a_file_that_predicts_other_classes_is_refused_with_the_number() -> None:
    images = [torch.cat([image(1, 0, 0, 0, 0, 0)] * 300)]
    swapped = torch.tensor([1, 0, 2, 3, 4, 5])
    message = (
        "the onnx file predicts the student's class on 0.00 % of 300 images only, not on 99.9 % "
        "(export.min_agreement). That class leads by 1 at most on the others, and by 1 on the "
        "median image. The file was removed"
    )
    with pytest.raises(ExportError, match=re.escape(message)):
        prove("onnx", lambda x: pixels(x)[:, swapped], pixels, images, SHAPE)


def test_limits_may_be_others() -> None:
    def exported(images: Tensor) -> Tensor:
        return pixels(images) * 1.02

    assert prove("onnx", exported, pixels, [], SHAPE).deviation < 0.1
    with pytest.raises(ExportError, match=r"more than 0\.001"):
        prove("onnx", exported, pixels, [], SHAPE, ExportConfig(max_deviation=0.001))


def test_a_student_that_says_nothing_is_agreed_with_and_with_nothing_else() -> None:
    def nothing(images: Tensor) -> Tensor:
        return torch.zeros(len(images), CLASSES)

    assert prove("packed", nothing, nothing, [], SHAPE).deviation == 0
    with pytest.raises(ExportError, match="one differs by inf of the logits' spread"):
        prove("packed", lambda images: nothing(images) + 1e-3, nothing, [], SHAPE)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 30, 17), (2, 1, 1)])
def test_images_are_drawn_that_drive_a_network_far(count: int, shape: tuple[int, int, int]) -> None:
    seeds = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    images = drawn_images(64, seeds, shape)
    assert torch.equal(torch.get_rng_state(), state)
    assert images.shape == (64, *shape)
    assert images.isfinite().all()
    assert len(images.flatten(1).unique(dim=0)) == 64
    assert torch.equal(images, drawn_images(64, seeds, shape))
    spread = float(seeds.std(correction=0)) if count else 1.0
    assert float((images - images.mean()).abs().max()) > 3 * spread
    black = drawn_images(64, torch.zeros(1, *shape), shape)
    assert len(black.flatten(1).unique(dim=0)) == 64


def test_latencies_are_taken_in_turns() -> None:
    calls = []

    def network(name: str) -> object:
        return lambda images: calls.append(name) or images

    first, second = latencies(network("a"), network("b"), torch.zeros(1))  # type: ignore[arg-type]
    assert first > 0 and second > 0
    assert calls == ["a", "b"] * (len(calls) // 2)


def timed(count: int, time: float = 7.0) -> Tensor:
    """Pictures of one channel with their timestep, and a network that puts the picture out."""
    pictures = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.cat([pictures, torch.full_like(pictures, time)], dim=1)


def test_of_values_each_is_compared_and_no_class_is_counted() -> None:
    def student(inputs: Tensor) -> Tensor:
        assert inputs.shape[1:] == (2, 4, 4)
        # Timesteps stay what they are, whatever noise is drawn.
        assert (inputs[:, 1] == 7).all()
        return inputs[:, :1]

    def other(inputs: Tensor) -> Tensor:
        return student(inputs) + 0.5 * (torch.arange(16).view(1, 1, 4, 4) == 3)

    same = prove("onnx", student, student, [timed(5)], (2, 4, 4), values=True)
    assert (same.agreement, same.agreeing, same.images, same.deviation) == (None, None, 5, 0)
    parity = compare(other, student, [timed(5)], (2, 4, 4), values=True)
    assert parity.largest_difference == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(ExportError, match="puts out other"):
        prove("onnx", other, student, [timed(5)], (2, 4, 4), values=True)
