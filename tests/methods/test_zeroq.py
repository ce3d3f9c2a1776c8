"""ZeroQ's statistics against plain Python, and a run that calibrates and trains nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.methods.zeroq import BNSPerImage, per_image_loss
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.terms.bns import channel_statistics
from tests.composition import composed
from tests.small_runs import build_module, fit, small


def test_statistics_are_those_of_each_image_alone() -> None:
    values = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    running_mean, running_var = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25])
    total = 0.0
    for image in values.double():
        for channel in range(2):
            numbers = image[channel].flatten().tolist()
            mean = sum(numbers) / 20
            deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / 19 + 1e-6)
            wanted = math.sqrt(float(running_var[channel]) + 1e-6)
            total += (mean - float(running_mean[channel])) ** 2 + (deviation - wanted) ** 2
    found = per_image_loss(values, running_mean, running_var)
    assert float(found) == pytest.approx(total / 3, rel=1e-5)


def test_images_cannot_make_up_for_each_other() -> None:
    """A batch may have the right statistics with images none of which has."""
    values = torch.cat([torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 2, 2), -1.0)])
    mean, var = channel_statistics(values)
    assert (mean.item(), var.item()) == (0.0, 1.0)
    assert float(per_image_loss(values, torch.zeros(1), torch.ones(1))) == pytest.approx(
        2, rel=1e-2
    )


def test_maps_of_one_position_have_a_mean_and_no_deviation() -> None:
    values = torch.tensor([[[[3.0]]], [[[1.0]]]]).requires_grad_()
    loss = per_image_loss(values, torch.tensor([2.0]), torch.tensor([5.0]))
    loss.backward()
    assert float(loss.detach()) == 1.0
    assert values.grad is not None and values.grad.flatten().tolist() == [1.0, -1.0]


def test_an_image_without_contrast_has_a_finite_gradient() -> None:
    values = torch.ones(1, 1, 3, 3, requires_grad=True)
    per_image_loss(values, torch.zeros(1), torch.ones(1)).backward()
    assert values.grad is not None and values.grad.isfinite().all()


def test_layers_are_added_up() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(3)),
    ).eval()
    images = torch.randn(5, 1, 8, 8)
    network(images)
    teacher = FrozenTeacher(PretrainedNetwork(network, "any", (1, 8, 8), 3, (0.5,), (0.5,), ""))
    term = BNSPerImage()
    needs = term.bind(teacher, teacher)
    trace = teacher.trace(images, needs.teacher, unfolded=needs.batch_norms)
    first = network[0](images)
    second = network[3](network[:3](images))
    expected = sum(
        per_image_loss(x, torch.zeros(c), torch.ones(c)) for x, c in ((first, 4), (second, 2))
    )
    found = term(Seen(Batch(images), trace, None, Progress("synthesis", 1, 1)))
    torch.testing.assert_close(found, expected)


def test_constants_are_those_of_the_released_code() -> None:
    config = composed("method=zeroq", "schedule=released")
    bank = config.sources["bank"]
    assert (bank.size, bank.batch_size, bank.iterations) == (64, 64, 500)
    assert (bank.lr, bank.patience, bank.factor) == (0.5, 100, 0.1)
    assert config.order == ["synthesis", "calibration"]
    assert config.stages["calibration"].steps * config.stages["calibration"].batch_size == 64


def test_the_student_is_calibrated_and_not_trained() -> None:
    module = build_module(small("method=zeroq", "quantizer=minmax"))
    before = {name: value.detach().clone() for name, value in module.student.named_parameters()}
    fit(module)
    assert module.ranges_frozen
    assert all(torch.equal(value, before[n]) for n, value in module.student.named_parameters())
