"""Mean and deviation of images against the formula by hand."""

from __future__ import annotations

import math

import torch

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.terms.image_statistics import ImageStatistics


def test_images_are_drawn_to_mean_0_and_deviation_1() -> None:
    images = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]], [[[0.0, 0.0], [2.0, 2.0]]]])
    deviations = [math.sqrt(20 / 3), math.sqrt(4 / 3)]
    expected = (16 + (deviations[0] - 1) ** 2 + 1 + (deviations[1] - 1) ** 2) / 2
    seen = Seen(Batch(images), Trace(torch.zeros(2, 1), {}), None, Progress("synthesis", 1, 1))
    assert abs(float(ImageStatistics()(seen)) - expected) < 1e-5
