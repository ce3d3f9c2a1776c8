from __future__ import annotations

import pytest
import torch

from hast_lightning.core.batch import Batch
from hast_lightning.errors import ModelError
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.transforms.crop_and_flip import CropAndFlip
from hast_lightning.transforms.in_time import (
    TimeMask,
    TimeShift,
    drawn_spans,
    masked,
    shifted,
)
from hast_lightning.transforms.promotion import Promotion
from tests.features import features, loaded
from tests.small_runs import build_module, small


def test_a_shift_repeats_the_frame_at_the_end() -> None:
    frames = torch.arange(5.0).view(1, 1, 5, 1).expand(3, 2, 5, 2)
    moved = shifted(frames, torch.tensor([0, 2, -1]))
    assert moved[:, 1, :, 1].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [1, 2, 3, 4, 4]]


def test_masked_frames_have_the_mean_of_their_coefficient() -> None:
    values = features(2)
    found = masked(values, torch.tensor([1, 4]), torch.tensor([3, 0]))
    expected = values.clone()
    for coefficient in range(5):
        expected[0, 0, 1:4, coefficient] = values[:, 0, :, coefficient].mean()
    torch.testing.assert_close(found, expected)


def test_spans_lie_inside_and_have_every_width() -> None:
    torch.manual_seed(0)
    start, width = drawn_spans(features(1000), 4)
    assert sorted(set(width.tolist())) == [0, 1, 2, 3, 4]
    assert start.min() == 0 and (start + width).max() == 11
    _, width = drawn_spans(features(100), 50)
    assert width.max() <= 11


def test_both_act_on_features_alone() -> None:
    teacher = FrozenTeacher(loaded())
    pictures = build_module(small()).teacher
    batch = Batch(features(8), torch.zeros(8, dtype=torch.int64))
    for transform in (TimeShift(), TimeMask(frames=4)):
        transform.bind(teacher, teacher)
        torch.manual_seed(1)
        changed = transform(batch)
        assert changed.inputs.shape == batch.inputs.shape
        assert not torch.equal(changed.inputs, batch.inputs)
        with pytest.raises(ModelError, match=f"transform {transform.kind} acts on time"):
            transform.bind(pictures, pictures)
    unchanged = [TimeShift(frames=0)(batch).inputs, TimeMask(frames=0)(batch).inputs]
    assert all(torch.equal(inputs, batch.inputs) for inputs in unchanged)


def test_features_are_shifted_where_pictures_are_cropped_and_flipped() -> None:
    teacher, transform = FrozenTeacher(loaded()), CropAndFlip()
    transform.bind(teacher, teacher)
    batch = Batch(features(16))
    torch.manual_seed(2)
    torch.rand(())  # the coin
    expected = TimeShift()(batch).inputs
    torch.manual_seed(2)
    assert torch.equal(transform(batch).inputs, expected)


def test_promotion_moves_every_coefficient_by_a_share_of_its_deviation() -> None:
    teacher, transform = FrozenTeacher(loaded()), Promotion(eps=0.1)
    transform.bind(teacher, teacher)
    inputs, gradient = features(2), torch.randn(2, 1, 11, 5)
    moved = transform(Batch(inputs), gradient).inputs - inputs
    assert loaded().spread is not None
    expected = 0.1 * loaded().spread * gradient.sign()
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
