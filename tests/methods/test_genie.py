"""GENIE's synthesis against plain formulas, and two steps of the whole method."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.methods.genie import (
    deviation_loss,
    shifted,
    strided_convolutions,
    swinging,
)
from hast_lightning.models.zoo import load
from hast_lightning.quantization.adaround import AdaptiveWeightQuantizer
from hast_lightning.quantization.power_ranges import PowerRanges
from hast_lightning.quantization.search import SHRINK_FACTORS, least_squares
from hast_lightning.records.result import Result
from hast_lightning.sources.latent_bank import LatentBank
from hast_lightning.stages.reconstruct import Reconstruct
from tests.command_line import TINY, call
from tests.composition import composed
from tests.small_runs import build_module, small

WORDS = ("method=genie", "quantizer=mse")


def test_constants_are_those_of_the_released_code() -> None:
    config = composed("method=genie", "schedule=released")
    bank, learned = config.sources["bank"], config.stages["reconstruction"]
    assert isinstance(bank, LatentBank) and isinstance(learned, Reconstruct)
    assert (bank.size, bank.batch_size, bank.iterations) == (1024, 128, 4000)
    assert (bank.latent_dim, bank.lr, bank.patience) == (256, 0.1, 100)
    assert (bank.generator_lr, bank.generator_decay) == (0.01, 0.95)
    assert {term.weight for term in config.stages["synthesis"].terms.values()} == {1}
    assert (learned.iterations, learned.batch_size, learned.samples) == (20_000, 32, 1024)
    assert (learned.drop, learned.mix, learned.regularization) == (0.5, 0.5, 1.0)
    assert (learned.lr, learned.step_lr) == (1e-3, 1e-4)


@pytest.mark.parametrize(
    ("quantizer", "symmetric", "bits"),
    [("lsq", True, {3}), ("power", False, {4, 8})],
)
def test_how_weights_start_is_the_quantizers(
    quantizer: str, symmetric: bool, bits: set[int]
) -> None:
    """As the head of the method says: only one of the two has the authors' ranges and ends."""
    config = small("method=genie", f"quantizer={quantizer}")
    student = build_module(config).student
    found = [m for m in student.modules() if isinstance(m, AdaptiveWeightQuantizer)]
    assert {each.grid.symmetric for each in found} == {symmetric}
    assert {each.bits for each in found} == bits
    assert {float(each.relative_scale.detach().max()) for each in found} == {1.0}
    if quantizer == "power":
        ranges = config.quantizer.ranges
        assert isinstance(ranges, PowerRanges)
        assert (ranges.candidates, ranges.power) == (100, 2.4)
    else:
        assert {each.find for each in found} == {least_squares}
        assert len(SHRINK_FACTORS) == 17


def test_deviations_are_those_of_plain_python() -> None:
    values = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    running_mean, running_var = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25])
    expected = 0.0
    for channel in range(2):
        numbers = values[:, channel].flatten().tolist()
        mean = sum(numbers) / len(numbers)
        variance = sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)
        wanted = math.sqrt(float(running_var[channel]) + 1e-6)
        expected += (mean - float(running_mean[channel])) ** 2 / 2
        expected += (math.sqrt(variance) - wanted) ** 2 / 2
    found = deviation_loss(values.float(), running_mean, running_var)
    assert abs(float(found) - expected) < 1e-5


def test_layers_are_added_up_not_averaged() -> None:
    module = build_module(
        small("method=genie", "quantizer=minmax", "order=[synthesis,calibration]")
    )
    term = module.stages["synthesis"].terms["bn_deviations"]
    needs = term.bind(module.teacher, module.learner)
    images = torch.randn(4, 1, 8, 8)
    trace = module.teacher.trace(images, needs.teacher, unfolded=True)
    seen = Seen(Batch(images), trace, None, Progress("synthesis", 1, 1))
    layers = [m for m in module.teacher.graph_module.modules() if isinstance(m, nn.BatchNorm2d)]
    singly = [
        deviation_loss(trace.values[node], layer.running_mean, layer.running_var)
        for node, layer in zip(needs.teacher, layers, strict=True)
        if layer.running_mean is not None and layer.running_var is not None
    ]
    assert torch.allclose(term(seen), torch.stack(singly).sum())


def test_a_shift_crops_a_reflected_image() -> None:
    images = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(shifted(images, 1, 1), images)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    assert torch.equal(shifted(images, 0, 2), padded[..., 0:3, 2:6])


def test_strided_convolutions_swing_while_images_are_made_and_only_then() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, stride=2, padding=1))
    assert strided_convolutions(network) == [network[1]]
    images = torch.randn(1, 1, 8, 8)
    still = network(images)
    torch.manual_seed(0)
    with swinging(network):
        swung = [network(images) for _ in range(12)]
        assert torch.equal(network[0](images), network[0](images))
    inner = network[0](images)
    wanted = [network[1](shifted(inner, row, column)) for row in range(3) for column in range(3)]
    assert all(any(torch.equal(found, one) for one in wanted) for found in swung)
    assert len({float(found.sum()) for found in swung}) > 2
    assert torch.equal(network(images), still)


def test_a_map_of_one_pixel_does_not_swing() -> None:
    layer = nn.Conv2d(1, 1, 1, stride=2)
    with swinging(layer):
        assert layer(torch.ones(1, 1, 1, 1)).shape == (1, 1, 1, 1)


def test_the_bundled_network_has_strides_to_swing() -> None:
    assert len(strided_convolutions(load(small().model).network)) == 2


def test_two_steps_of_every_stage(tmp_path: Path) -> None:
    finished = call(*TINY, *WORDS, "hydra.run.dir=run", folder=tmp_path)
    assert finished.status == 0, finished
    result = Result.read(tmp_path / "run" / "result.json")
    assert result.method == "genie"
    assert list(result.steps_by_stage) == ["synthesis", "calibration", "reconstruction"]
    assert result.exports["packed"]["agreement"] == 100


def test_a_channel_that_is_constant_has_no_gradient() -> None:
    """As that of a filter that was pruned; it would make the whole step NaN."""
    values = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    values[:, 1] = 0.5
    values.requires_grad_()
    deviation_loss(values, torch.zeros(2), torch.ones(2)).backward()
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())
    assert bool(values.grad[:, 0].any())
    # One value a channel, of a single image behind a global pooling.
    assert bool(deviation_loss(torch.zeros(1, 2), torch.zeros(2), torch.ones(2)).isfinite())
