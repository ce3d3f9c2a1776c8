"""Batched augmentation against torchvision's, image by image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as reference

from hast_lightning.core.batch import Batch
from hast_lightning.errors import ConfigurationError
from hast_lightning.transforms.crop_and_flip import (
    CropAndFlip,
    crop_and_flip,
    draw_crop_boxes,
    resized_crop,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torchvision_crops(images: Tensor, boxes: Tensor, flipped: Tensor) -> Tensor:
    size = list(images.shape[2:])
    crops = []
    for image, box, flip in zip(images, boxes.tolist(), flipped.tolist(), strict=True):
        crop = reference.resized_crop(
            image, *box, size, reference.InterpolationMode.BILINEAR, antialias=True
        )
        crops.append(reference.hflip(crop) if flip else crop)
    return torch.stack(crops)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 20, 36)])
def test_crops_equal_torchvisions(shape: tuple[int, int, int]) -> None:
    images = torch.randn(16, *shape, generator=seeded(0))
    boxes = draw_crop_boxes(16, shape[1:], 0.1, 1.0, generator=seeded(1))
    flipped = torch.rand(16, generator=seeded(2)) < 0.5
    ours = resized_crop(images, boxes, flipped)
    torch.testing.assert_close(
        ours, torchvision_crops(images, boxes, flipped), rtol=1e-4, atol=1e-5
    )


def test_corner_boxes_and_single_pixels_equal_torchvisions() -> None:
    images = torch.randn(5, 3, 12, 12, generator=seeded(0))
    boxes = torch.tensor(
        [[0, 0, 5, 7], [7, 5, 5, 7], [0, 0, 12, 12], [11, 11, 1, 1], [3, 0, 1, 12]]
    )
    flipped = torch.tensor([False, True, True, False, True])
    expected = torchvision_crops(images, boxes, flipped)
    torch.testing.assert_close(resized_crop(images, boxes, flipped), expected, rtol=1e-4, atol=1e-5)


def test_the_whole_image_comes_back_bit_by_bit() -> None:
    images = torch.randn(2, 3, 32, 32, generator=seeded(0))
    boxes = torch.tensor([[0, 0, 32, 32]]).repeat(2, 1)
    assert torch.equal(resized_crop(images, boxes), images)
    mirrored = resized_crop(images, boxes, torch.tensor([True, False]))
    assert torch.equal(mirrored[0], images[0].flip(-1))
    assert torch.equal(mirrored[1], images[1])


def test_nothing_outside_the_crop_is_seen() -> None:
    images = torch.full((1, 1, 10, 10), 100.0)
    images[:, :, 2:6, 3:8] = 1.0
    seen = resized_crop(images, torch.tensor([[2, 3, 4, 5]]))
    torch.testing.assert_close(seen, torch.ones(1, 1, 10, 10))


def test_gradient_matches_finite_differences() -> None:
    images = torch.randn(2, 2, 5, 6, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1, 0, 3, 4], [0, 2, 5, 3]])
    flipped = torch.tensor([True, False])
    # The weights are float32 numbers, the product is not: exact in the images.
    assert torch.autograd.gradcheck(lambda x: resized_crop(x, boxes, flipped), (images,))


def test_pixels_keep_float32_precision_under_autocast() -> None:
    images = torch.randn(2, 3, 8, 8, generator=seeded(0))
    boxes = torch.tensor([[1, 2, 5, 4], [0, 0, 8, 8]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cropped = resized_crop(images, boxes)
    assert cropped.dtype == torch.float32
    assert torch.equal(cropped, resized_crop(images, boxes))


@given(
    st.integers(4, 64),
    st.integers(4, 64),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2**31),
)
@settings(deadline=None)
def test_boxes_obey_the_law_of_random_resized_crop(
    height: int, width: int, min_scale: float, span: float, seed: int
) -> None:
    max_scale = min_scale + span * (1 - min_scale)
    boxes = draw_crop_boxes(
        32, (height, width), min_scale, max_scale, generator=seeded(seed)
    ).tolist()
    low, high = 3 / 4, 4 / 3
    # Nothing of four times the area fits: torchvision's fallback, which no scale binds.
    image = torch.zeros(1, height, width)
    centre = RandomResizedCrop.get_params(image, [4.0, 4.0], [low, high])
    for top, left, h, w in boxes:
        assert h >= 1 and w >= 1
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        # Each side is rounded by at most half a pixel.
        assert (w + 0.5) / (h - 0.5) >= low - 1e-3
        assert (w - 0.5) / (h + 0.5) <= high + 1e-3
        fallback = (top, left, h, w) == centre
        largest = (h + 0.5) * (w + 0.5)
        least = (h - 0.5) * (w - 0.5)
        assert fallback or largest >= min_scale * height * width * (1 - 1e-3)
        assert fallback or least <= max_scale * height * width * (1 + 1e-3)


def test_areas_are_uniform_and_aspects_log_uniform() -> None:
    size = (1000, 1000)
    boxes = draw_crop_boxes(20000, size, 0.1, 0.5, generator=seeded(0)).double()
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    log_aspect = (boxes[:, 3] / boxes[:, 2]).log()
    # Small areas always fit, so the law is exact: compare deciles.
    deciles = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    torch.testing.assert_close(area.quantile(deciles), 0.1 + 0.4 * deciles, rtol=0, atol=0.01)
    expected = (2 * deciles - 1) * math.log(4 / 3)
    torch.testing.assert_close(log_aspect.quantile(deciles), expected, rtol=0, atol=0.01)
    for axis in (0, 1):
        place = boxes[:, axis] / (1000 - boxes[:, axis + 2] + 1)
        torch.testing.assert_close(place.quantile(deciles), deciles, rtol=0, atol=0.015)


def test_every_corner_is_reached() -> None:
    boxes = draw_crop_boxes(2000, (4, 4), 0.2, 0.3, generator=seeded(0))
    small = boxes[(boxes[:, 2] == 2) & (boxes[:, 3] == 2)]
    corners = {tuple(corner) for corner in small[:, :2].tolist()}
    assert corners == {(top, left) for top in range(3) for left in range(3)}


@pytest.mark.parametrize("size", [(8, 64), (64, 8), (16, 24), (10, 40)])
def test_where_no_box_fits_the_centre_is_taken_as_torchvision_does(size: tuple[int, int]) -> None:
    # Of a wide image, boxes of nearly its whole area cannot have a moderate aspect ratio.
    boxes = draw_crop_boxes(64, size, 0.9999, 1.0, generator=seeded(0))
    torch.manual_seed(0)
    expected = {
        tuple(RandomResizedCrop.get_params(torch.zeros(1, *size), [0.9999, 1.0], [3 / 4, 4 / 3]))
        for _ in range(64)
    }
    assert {tuple(box) for box in boxes.tolist()} == expected


def test_boxes_are_drawn_like_torchvisions() -> None:
    size = (32, 32)
    boxes = draw_crop_boxes(4000, size, 0.4, 1.0, generator=seeded(0)).double()
    torch.manual_seed(0)
    image = torch.zeros(1, *size)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.4, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)],
        dtype=torch.float64,
    )
    # Standard errors of these means are below 0.13 pixels.
    torch.testing.assert_close(boxes.mean(0), theirs.mean(0), rtol=0, atol=0.5)
    torch.testing.assert_close(boxes.std(0), theirs.std(0), rtol=0, atol=0.5)


def test_flips_come_with_their_probability_and_each_image_has_its_own_box() -> None:
    images = torch.randn(1, 1, 8, 8, generator=seeded(0)).repeat(400, 1, 1, 1)
    flips_only = crop_and_flip(images, 1.0, 1.0, 0.25, seeded(3))
    whole = draw_crop_boxes(400, (8, 8), 1.0, 1.0, generator=seeded(3))[:, 2:].eq(8).all(1)
    mirrored = (flips_only == images.flip(-1)).flatten(1).all(1)
    assert 0.15 < float(mirrored[whole].float().mean()) < 0.35
    crops = crop_and_flip(images, 0.4, 1.0, 0.0, seeded(4))
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) > 50


def test_the_same_generator_gives_the_same_crops() -> None:
    images = torch.randn(4, 3, 16, 16, generator=seeded(0))
    first = crop_and_flip(images, 0.4, 1.0, 0.5, seeded(1))
    assert torch.equal(first, crop_and_flip(images, 0.4, 1.0, 0.5, seeded(1)))
    assert not torch.equal(first, crop_and_flip(images, 0.4, 1.0, 0.5, seeded(2)))


def test_whole_batches_are_changed_with_the_probability() -> None:
    torch.manual_seed(0)
    batch = Batch(torch.randn(8, 1, 8, 8), torch.arange(8), torch.rand(8))
    transform = CropAndFlip(probability=0.3, min_scale=0.3, max_scale=0.6)
    outcomes = [transform(batch) for _ in range(300)]
    untouched = [outcome is batch for outcome in outcomes]
    assert 0.6 < sum(untouched) / 300 < 0.8
    for outcome, same in zip(outcomes, untouched, strict=True):
        assert same or not (outcome.inputs == batch.inputs).flatten(1).all(1).any()
        assert outcome.targets is batch.targets and outcome.weights is batch.weights


def test_probability_zero_never_and_one_always_changes() -> None:
    torch.manual_seed(0)
    batch = Batch(torch.randn(4, 1, 8, 8))
    before = torch.get_rng_state()
    assert CropAndFlip(probability=0.0)(batch) is batch
    assert torch.equal(torch.get_rng_state(), before)  # switched off, it draws nothing
    always = CropAndFlip(probability=1.0)
    assert all(always(batch) is not batch for _ in range(50))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.1}, "probability=1.1 must be at least 0 and at most 1"),
        ({"flip": -0.1}, "flip=-0.1 must be at least 0 and at most 1"),
        ({"min_scale": 0.0}, "min_scale=0.0 must be greater than 0"),
        ({"min_scale": 0.6, "max_scale": 0.5}, "max_scale=0.5 must be at least 0.6"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CropAndFlip(**settings)
