"""Batch-norm statistics: what is measured, the gradients, and the loss of its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.terms.bns import (
    BNS,
    BatchNormStatistics,
    batch_norm_statistics_loss,
    channel_statistics,
    statistics_by_image,
)

IMAGES = (4, 3, 16, 16)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def network() -> CifarResNet:
    """A network whose BatchNorms are far from the identity."""
    torch.manual_seed(0)
    network = CifarResNet(8, 5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return network.eval()


def frozen(network: nn.Module) -> FrozenTeacher:
    return FrozenTeacher(PretrainedNetwork(network, "any", (3, 16, 16), 5, (0.5,), (0.5,), ""))


class Measured:
    """The term as a step calls it."""

    def __init__(self, network: nn.Module, **settings: Any) -> None:
        self.teacher, self.term = frozen(network), BNS(**settings)
        self.needs = self.term.bind(self.teacher, self.teacher)

    def __call__(self, images: Tensor) -> Tensor:
        return self.term(self.seen(images))

    def seen(self, images: Tensor) -> Seen:
        trace = self.teacher.trace(images, self.needs.teacher, unfolded=self.needs.batch_norms)
        return Seen(Batch(images), trace, None, Progress("synthesis", 1, 1))


def plain_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean((0, 2, 3)), features.var((0, 2, 3), correction=0)


# --- statistics per channel ------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_statistics_are_mean_and_biased_variance(
    memory_format: torch.memory_format, offset: float
) -> None:
    features = (noise(5, 3, 4, 6) * 2 + offset).contiguous(memory_format=memory_format)
    mean, var = channel_statistics(features)
    expected_mean, expected_var = plain_statistics(features.double())
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=1e-6)
    # Also far from zero, where the mean of squares less the squared mean loses all digits.
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-5, atol=1e-6)


def test_gradients_pass_gradcheck_in_both_outputs() -> None:
    features = noise(3, 2, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(channel_statistics, (features,))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("used", ["both", "mean", "var"])
def test_gradients_equal_autograds(memory_format: torch.memory_format, used: str) -> None:
    gradients = []
    for function in (channel_statistics, plain_statistics):
        features = noise(5, 3, 4, 6).contiguous(memory_format=memory_format).requires_grad_()
        mean, var = function(features)
        parts = {"mean": mean.pow(3).sum(), "var": var.pow(3).sum()}
        (sum(parts.values()) if used == "both" else parts[used]).backward()  # type: ignore[union-attr]
        gradients.append(features.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_bfloat16_features_are_measured_in_float32() -> None:
    features = (noise(64, 2, 8, 8) + 3).bfloat16().requires_grad_()
    mean, var = channel_statistics(features)
    assert mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close((mean, var), plain_statistics(features.float()))
    (mean.sum() + var.sum()).backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16
    assert features.grad.isfinite().all()


# --- the loss --------------------------------------------------------------------------------


def random_statistics(seed: int) -> list[BatchNormStatistics]:
    generator = torch.Generator().manual_seed(seed)
    return [
        BatchNormStatistics(*(torch.rand(channels, generator=generator) for _ in range(4)))
        for channels in (3, 8, 5)
    ]


def test_the_loss_equals_the_formula() -> None:
    statistics = random_statistics(0)
    total = 0.0
    for layer in statistics:
        channels = len(layer.mean)
        for c in range(channels):
            total += float((layer.mean[c] - layer.running_mean[c]) ** 2) / channels
            total += float((layer.var[c] - layer.running_var[c]) ** 2) / channels
    assert float(batch_norm_statistics_loss(statistics)) == pytest.approx(total / 3, rel=1e-5)


def test_the_loss_is_zero_only_when_all_match() -> None:
    layers = [BatchNormStatistics(s.mean, s.var, s.mean, s.var) for s in random_statistics(1)]
    assert batch_norm_statistics_loss(layers) == 0
    layers[2] = layers[2]._replace(var=layers[2].var + 1)
    assert float(batch_norm_statistics_loss(layers)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("spread", ["variance", "deviation"])
@pytest.mark.parametrize("weights", [(1, 1), (1, 0), (0, 1), (0.5, 2)])
def test_means_and_spreads_have_weights_of_their_own(
    weights: tuple[float, float], spread: str
) -> None:
    statistics = random_statistics(2)
    total = 0.0
    for mean, var, running_mean, running_var in statistics:
        for c in range(len(mean)):
            found, wanted = float(var[c]), float(running_var[c])
            if spread == "deviation":
                found, wanted = (found + 1e-6) ** 0.5, (wanted + 1e-6) ** 0.5
            error = weights[0] * float(mean[c] - running_mean[c]) ** 2
            total += (error + weights[1] * (found - wanted) ** 2) / len(mean)
    measured = Measured(
        network(), mean_weight=weights[0], variance_weight=weights[1], spread=spread
    )
    measured.term.statistics = lambda seen: statistics  # type: ignore[method-assign]
    assert float(measured(noise(*IMAGES))) == pytest.approx(total / 3, rel=1e-5)


@pytest.mark.parametrize("weights", [(1, 1), (0.5, 2)])
def test_relative_errors_are_in_units_of_each_channels_deviation(
    weights: tuple[float, float],
) -> None:
    statistics = random_statistics(2)
    total = 0.0
    for mean, var, running_mean, running_var in statistics:
        for c in range(len(mean)):
            unit = (float(running_var[c]) + 1e-3) ** 0.5
            of_mean = (float(mean[c] - running_mean[c]) / unit) ** 2
            of_spread = ((float(var[c]) + 1e-3) ** 0.5 / unit - 1) ** 2
            total += (weights[0] * of_mean + weights[1] * of_spread) / len(mean)
    measured = Measured(
        network(), mean_weight=weights[0], variance_weight=weights[1], relative=True
    )
    measured.term.statistics = lambda seen: statistics  # type: ignore[method-assign]
    assert float(measured(noise(*IMAGES))) == pytest.approx(total / 3, rel=1e-5)


def test_a_layer_of_large_values_counts_no_more_than_another_where_errors_are_relative() -> None:
    small, large = random_statistics(2)[:2]
    large = BatchNormStatistics(
        *(100 * v for v in large[:1]), 1e4 * large[1], 100 * large[2], 1e4 * large[3]
    )
    both = float(batch_norm_statistics_loss([small, large], relative=True))
    each = [float(batch_norm_statistics_loss([one], relative=True)) for one in (small, large)]
    assert both == pytest.approx(sum(each) / 2)
    assert 0.2 < each[0] / each[1] < 5
    plain = [float(batch_norm_statistics_loss([one])) for one in (small, large)]
    assert plain[1] > 1000 * plain[0]


def test_the_defaults_are_the_papers_loss_bit_for_bit() -> None:
    measured = Measured(network())
    gradients = []
    for plain in (False, True):
        images = noise(*IMAGES).requires_grad_()
        seen = measured.seen(images)
        if plain:
            layers = [
                nn.functional.mse_loss(s.mean, s.running_mean)
                + nn.functional.mse_loss(s.var, s.running_var)
                for s in measured.term.statistics(seen)
            ]
            torch.stack(layers).mean().backward()
        else:
            measured.term(seen).backward()
        gradients.append(images.grad)
    assert torch.equal(gradients[0], gradients[1])  # type: ignore[arg-type]


def test_a_mean_that_is_left_out_gets_no_gradient() -> None:
    measured = Measured(network(), mean_weight=0.0)
    images = noise(*IMAGES)
    first = [float(measured(images + shift)) for shift in (0.0, 0.0)]
    assert first[0] == first[1]
    (layer, *_) = measured.term.statistics(measured.seen(images))
    (shifted, *_) = measured.term.statistics(measured.seen(images + 1.0))
    assert not torch.allclose(layer.mean, shifted.mean)
    for settings in ({"mean_weight": 0.0}, {"variance_weight": 0.0}):
        alone = batch_norm_statistics_loss([layer], **settings)  # type: ignore[arg-type]
        assert 0 < float(alone) < float(batch_norm_statistics_loss([layer]))


def test_settings_that_match_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="leave the term bns nothing to match"):
        BNS(mean_weight=0.0, variance_weight=0.0)
    with pytest.raises(ConfigurationError, match="spread='range' is not one of"):
        BNS(spread="range")


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 2, 3), (1, 1, 2, 2)])
def test_statistics_by_image_are_over_positions_alone(shape: tuple[int, ...]) -> None:
    features = noise(*shape).double().requires_grad_()
    mean, var = statistics_by_image(features)
    rows = features.detach().reshape(*shape[:2], -1)
    torch.testing.assert_close(mean, rows.mean(2))
    torch.testing.assert_close(var, rows.var(2, correction=0))
    assert torch.autograd.gradcheck(statistics_by_image, (features,))


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 2, 3, 2)])
def test_statistics_are_over_images_and_positions_of_any_number(shape: tuple[int, ...]) -> None:
    features = noise(*shape).double().requires_grad_()
    mean, var = channel_statistics(features)
    rows = features.detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, rows.mean(1))
    torch.testing.assert_close(var, rows.var(1, correction=0))
    assert torch.autograd.gradcheck(channel_statistics, (features,))


# --- the term --------------------------------------------------------------------------------


def test_statistics_are_those_at_every_batch_norm_input() -> None:
    original = network()
    measured = Measured(original)
    taken_in: dict[nn.Module, Tensor] = {}
    norms = [layer for layer in original.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda layer, given: taken_in.update({layer: given[0]}))
    images = noise(*IMAGES)
    statistics = measured.term.statistics(measured.seen(images))
    original(images)
    assert len(statistics) == len(norms) == 7
    for norm, layer in zip(norms, statistics, strict=True):
        mean, var = plain_statistics(taken_in[norm])
        torch.testing.assert_close(layer.mean, mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.var, var, rtol=1e-5, atol=1e-6)
        assert torch.equal(layer.running_mean, norm.running_mean)
        assert torch.equal(layer.running_var, norm.running_var)


def test_gradients_reach_the_images_as_through_plain_autograd() -> None:
    original = network().requires_grad_(False).double()
    measured = Measured(original)
    losses: list[Tensor] = []

    def measure(layer: nn.Module, given: tuple[Tensor]) -> None:
        mean, var = plain_statistics(given[0])
        errors = (mean - layer.running_mean).square(), (var - layer.running_var).square()
        losses.append(errors[0].mean() + errors[1].mean())

    for layer in original.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(measure)
    images = [noise(*IMAGES).double().requires_grad_() for _ in range(2)]
    measured(images[0]).backward()
    original(images[1])
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(images[0].grad, images[1].grad)
    assert float(images[0].grad.abs().max()) > 1e-5  # type: ignore[union-attr]


def test_it_follows_the_teacher_to_another_device_and_holds_none_of_its_layers() -> None:
    measured = Measured(network())
    assert list(measured.term.state_dict()) == list(measured.term.modules())[1:] == []
    measured.teacher.to("meta")
    assert measured(torch.empty(IMAGES, device="meta")).device.type == "meta"


@pytest.mark.slow
def test_it_compiles_into_one_graph_with_the_same_gradients() -> None:
    measured = Measured(network())
    # The term looks at what the teacher's own pass gives.
    measured(noise(*IMAGES))
    compiled = torch.compile(measured.__call__, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (compiled, measured):
        images = noise(*IMAGES).requires_grad_()
        function(images).backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "layers",
    [[nn.ReLU()], [nn.BatchNorm2d(4, track_running_stats=False)]],
    ids=["no BatchNorm", "no running statistics"],
)
def test_a_network_without_batch_norm_statistics_is_refused(layers: list[nn.Module]) -> None:
    teacher = frozen(nn.Sequential(nn.Conv2d(3, 4, 1), *layers))
    with pytest.raises(ModelError, match=r"any has no BatchNorm with running .* term bns"):
        BNS().bind(teacher, teacher)
