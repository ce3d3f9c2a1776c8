"""SynQ's filter, mask and Grad-CAM against plain references, and a run of a few steps."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.graph.network import Learner
from hast_lightning.methods.synq import (
    GradCAM,
    LowPass,
    MaskedCrossEntropy,
    low_pass,
    saliency_map,
)
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    freeze_ranges,
    set_activation_mode,
)
from hast_lightning.quantization.settings import QuantizerConfig
from tests.composition import composed
from tests.small_runs import build_module, fit, small

NOW = Progress("distillation", 1, 2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- The filter -----------------------------------------------------------------------------


def plain_low_pass(image: np.ndarray, radius: float) -> np.ndarray:
    """One channel (n, n) as the paper has it: distances from the centre of a shifted spectrum."""
    side = len(image)
    spectrum = np.fft.fftshift(np.fft.fft2(image))
    for row in range(side):
        for column in range(side):
            distance = (row - side // 2) ** 2 + (column - side // 2) ** 2
            spectrum[row, column] *= math.exp(-distance / (2 * radius**2))
    return np.fft.ifft2(np.fft.ifftshift(spectrum)).real


@pytest.mark.parametrize(
    ("side", "radius"), [(8, 2.0), (7, 1.75), (28, 10.0), (32, 80 / 7), (56, 20.0)]
)
def test_at_other_sizes_the_radius_is_scaled_and_the_filter_the_papers(
    side: int, radius: float
) -> None:
    """80 bins at 224 pixels are as many more or fewer as the image is larger or smaller."""
    images = noise(2, 3, side, side)
    scaled = LowPass(radius=radius * 224 / side, side=224)(Batch(images)).inputs
    for image, filtered in zip(images.flatten(0, 1), scaled.flatten(0, 1), strict=True):
        expected = plain_low_pass(image.double().numpy(), radius)
        np.testing.assert_allclose(filtered.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(("rows", "columns"), [(3, 0), (0, 5), (6, 9)])
def test_a_wave_is_damped_by_its_cycles_per_pixel_in_images_that_are_not_square(
    rows: int, columns: int
) -> None:
    height, width, cutoff = 24, 40, 0.2
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    wave = torch.cos(2 * math.pi * (rows * y + columns * x))[None, None]
    square = (rows / height) ** 2 + (columns / width) ** 2
    damped = math.exp(-square / (2 * cutoff**2)) * wave
    torch.testing.assert_close(low_pass(wave, cutoff), damped, atol=1e-5, rtol=0)


def test_eighty_bins_are_next_to_no_filter_at_32_pixels_and_eight_are_one() -> None:
    """The pitfall of the paper's default on small images: what CIFAR's recipe has is another."""
    images = noise(4, 3, 32, 32)
    share = [
        float((low_pass(images, radius / 32) - images).square().mean()) for radius in (80.0, 8.0)
    ]
    assert share[0] < 1e-3
    assert share[1] > 0.2


def test_the_filter_keeps_means_types_and_labels_and_lets_gradients_through() -> None:
    images = noise(2, 3, 9, 12).requires_grad_()
    batch = LowPass(radius=4, side=32)(Batch(images, torch.arange(2), torch.ones(2)))
    torch.testing.assert_close(batch.inputs.mean((2, 3)), images.mean((2, 3)))
    assert torch.equal(batch.targets, torch.arange(2))
    # The filter is symmetric: its gradient is the filter of what comes from above.
    above = noise(2, 3, 9, 12, seed=1)
    (gradient,) = torch.autograd.grad(batch.inputs, images, above)
    torch.testing.assert_close(gradient, low_pass(above, 4 / 32))
    assert low_pass(images.bfloat16(), 0.2).dtype == torch.bfloat16


# -- The mask -------------------------------------------------------------------------------


def masked(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    **settings: float,
) -> Tensor:
    seen = Seen(
        Batch(noise(len(labels), 1), labels, weights), Trace(teacher, {}), Trace(student, {}), NOW
    )
    return MaskedCrossEntropy(**settings)(seen)


def plain_masked(student: Tensor, teacher: Tensor, labels: Tensor, threshold: float) -> float:
    total = 0.0
    for own, other, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p = math.exp(other[label]) / sum(math.exp(z) for z in other)
        if 1 - p < threshold:
            total += math.log(sum(math.exp(z) for z in own)) - own[label]
    return total / len(labels)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 1.0])
def test_samples_that_the_teacher_doubts_are_left_out_and_counted(threshold: float) -> None:
    """Divided by the whole batch; and no log(classes) for the samples that are left out."""
    labels = torch.arange(40) % 5
    student, teacher = noise(40, 5), 2 * noise(40, 5, seed=1) + 2 * F.one_hot(labels, 5)
    expected = plain_masked(student, teacher, labels, threshold)
    assert float(masked(student, teacher, labels, threshold=threshold)) == pytest.approx(expected)
    doubted = 1 - teacher.softmax(1).gather(1, labels[:, None])[:, 0] >= threshold
    assert 0 < int(doubted.sum()) < 40 or threshold == 1
    weights = torch.rand(40)
    weighted = masked(student, teacher, labels, weights, threshold=threshold)
    each = F.cross_entropy(student, labels, reduction="none") * ~doubted
    torch.testing.assert_close(weighted, (weights * each).sum() / weights.sum())


def test_a_sample_left_out_has_no_gradient_and_a_batch_of_them_costs_nothing() -> None:
    labels = torch.tensor([0, 1])
    student = noise(2, 3).requires_grad_()
    teacher = torch.tensor([[9.0, 0, 0], [9.0, 0, 0]])
    masked(student, teacher, labels).backward()
    assert student.grad is not None
    assert student.grad[0].abs().min() > 0
    assert torch.equal(student.grad[1], torch.zeros(3))
    assert masked(student, teacher, torch.tensor([1, 2])) == 0


# -- Grad-CAM -------------------------------------------------------------------------------


def plain_map(features: Tensor, gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """Image by image, channel by channel."""
    maps = []
    for image, slope in zip(features, gradient, strict=True):
        total = torch.zeros(image.shape[1:])
        for channel, slopes in zip(image, slope, strict=True):
            total = total + max(float(slopes.mean()), 1e-10) * channel
        large = F.interpolate(
            total.relu()[None, None], size=size, mode="bilinear", align_corners=False
        )
        maps.append((large[0, 0] - large.min()) / (large.max() - large.min()))
    return torch.stack(maps)


@pytest.mark.parametrize(
    ("now", "then"), [((4, 4), (32, 32)), ((7, 5), (224, 30)), ((3, 2), (8, 8))]
)
def test_a_map_is_the_plain_reference_in_value_and_gradient(
    now: tuple[int, int], then: tuple[int, int]
) -> None:
    ours, plain = (noise(3, 6, *now).requires_grad_() for _ in range(2))
    gradient = noise(3, 6, *now, seed=1)
    actual, expected = saliency_map(ours, gradient, then), plain_map(plain, gradient, then)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert actual.min() >= 0
    torch.testing.assert_close(actual.amax((1, 2)), torch.ones(3))
    above = noise(3, *then, seed=2)
    for of, leaf in ((actual, ours), (expected, plain)):
        (of * above).sum().backward()
        assert leaf.grad is not None
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("level", [0.0, -1.0, 3.0])
def test_a_map_without_differences_says_nothing(level: float) -> None:
    features = torch.full((1, 2, 4, 4), level, requires_grad=True)
    shown = saliency_map(features, torch.ones(1, 2, 4, 4), (8, 8))
    assert torch.equal(shown, torch.zeros(1, 8, 8))
    shown.sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


class Small(nn.Module):
    """A shortcut around the last convolution, and operations that overwrite their inputs."""

    def __init__(self, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm1, self.act1 = nn.BatchNorm2d(width), nn.ReLU()
        self.last = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.stem(x)))
        y = self.norm2(self.last(x))
        y += x
        y = self.act2(y).mean((2, 3))
        return self.head(y.view(y.size(0), -1))


def pretrained(network: nn.Module, size: int = 12) -> PretrainedNetwork:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return PretrainedNetwork(network.eval(), "small", (3, size, size), 4, (0,) * 3, (1,) * 3, "0")


@functools.cache
def settings_of(quantizer: str) -> QuantizerConfig:
    return composed(f"quantizer={quantizer}", "quantizer.bits=3").quantizer


def networks(quantizer: str = "minmax") -> tuple[FrozenTeacher, Learner]:
    """Teacher, and a calibrated student of the network above."""
    own = pretrained(Small())
    student = convert(own.network, settings_of(quantizer))
    set_activation_mode(student, ActivationMode.OBSERVE)
    student(noise(16, 3, 12, 12))
    freeze_ranges(student)
    return FrozenTeacher(own), Learner(student, own)


def see(
    teacher: FrozenTeacher, learner: Learner, term: GradCAM, images: Tensor, mark: str = ""
) -> Seen:
    needs = term.bind(teacher, learner)
    with torch.no_grad():
        of_teacher = teacher.trace(images, needs.teacher, unfolded=needs.batch_norms)
    of_student = learner.trace(images, needs.student or ())
    return Seen(Batch(images), of_teacher, of_student, NOW, mark)


def hooked(network: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Values of a layer, and the gradient of the largest logits by them, through the network."""
    kept = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[2]))
    images = images.clone().requires_grad_()
    logits = network(images)
    handle.remove()
    scores = logits.gather(1, logits.argmax(1, keepdim=True))
    return kept[0], torch.autograd.grad(scores.sum(), kept[0], retain_graph=True)[0]


@pytest.mark.parametrize("quantizer", ["minmax", "mse", "lsq"])
@pytest.mark.parametrize("layer", [None, "stem", "act1"])
def test_the_loss_is_that_of_hooks_and_of_whole_backward_passes(
    quantizer: str, layer: str | None
) -> None:
    """LSQ's backward cannot be differentiated: the weights of channels are constants."""
    teacher, learner = networks(quantizer)
    images = noise(5, 3, 12, 12, seed=3)
    term = GradCAM(layer=layer)
    loss = term(see(teacher, learner, term, images))

    name, student = layer or "last", learner.graph_module
    features = hooked(teacher.graph_module, name, images)
    target = plain_map(*(each.detach() for each in features), (12, 12))
    # What quantizers put behind the layer is not part of its own values.
    values, gradient = hooked(student, name, images)
    expected = (plain_map(values, gradient, (12, 12)) - target).square().mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    assert 0 < float(loss.detach()) < 1

    parameters = [student.get_submodule("stem").weight]
    (ours,) = torch.autograd.grad(loss, parameters)
    (plain,) = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)
    assert ours.abs().max() > 0


def test_what_is_looked_at_stays_as_it_is() -> None:
    """No gradients of parameters, no change of values that other terms read too."""
    teacher, learner = networks()
    term = GradCAM()
    seen = see(teacher, learner, term, noise(2, 3, 12, 12))
    before = [
        {name: value.clone() for name, value in trace.values.items() if torch.is_tensor(value)}
        for trace in (seen.teacher, seen.student)
    ]
    term(seen)
    for kept, trace in zip(before, (seen.teacher, seen.student), strict=True):
        assert kept
        for name, value in kept.items():
            assert torch.equal(trace.values[name], value)
    assert all(p.grad is None for p in learner.graph_module.parameters())


def test_a_student_that_is_the_teacher_looks_where_it_looks() -> None:
    own = pretrained(Small())
    term = GradCAM()
    loss = term(
        see(
            FrozenTeacher(own),
            Learner(FrozenTeacher(own).graph_module, own),
            term,
            noise(2, 3, 12, 12),
        )
    )
    assert loss == 0


def test_samples_count_by_their_weights_and_parts_of_a_batch_add_up() -> None:
    teacher, learner = networks()
    images, term = noise(4, 3, 12, 12), GradCAM()
    seen = see(teacher, learner, term, images)
    each = [float(term(see(teacher, learner, term, images[i : i + 1]))) for i in range(4)]
    assert float(term(seen)) == pytest.approx(sum(each) / 4, rel=1e-4)
    weights = torch.tensor([1.0, 0, 3, 0])
    weighted = seen._replace(batch=seen.batch._replace(weights=weights))
    assert float(term(weighted)) == pytest.approx((each[0] + 3 * each[2]) / 4, rel=1e-4)


def test_promoted_images_do_not_count() -> None:
    teacher, learner = networks()
    term = GradCAM()
    loss = term(see(teacher, learner, term, noise(2, 3, 12, 12), mark="_promoted"))
    assert loss == 0
    loss.backward()  # with a graph, so that it may be the only term


def of(*layers: nn.Module) -> PretrainedNetwork:
    return pretrained(nn.Sequential(*layers))


@pytest.mark.parametrize(
    ("own", "layer", "what"),
    [
        (
            of(nn.Flatten(), nn.Linear(432, 4)),
            None,
            "needs a convolution that the output depends on",
        ),
        (pretrained(Small()), "head", r"layer=head that .* has only head \(1, 4\)"),
        (pretrained(Small()), "absent", "layer=absent that .* has none"),
        (of(nn.Conv2d(3, 4, 12), nn.Flatten()), None, r"of more than one position.*\(1, 4, 1, 1\)"),
        (of(nn.Conv2d(3, 4, 3), nn.ReLU()), None, r"needs logits \(N, classes\)"),
    ],
)
def test_networks_without_such_maps_are_refused_in_one_line(
    own: PretrainedNetwork, layer: str | None, what: str
) -> None:
    teacher = FrozenTeacher(own)
    with pytest.raises(ModelError, match=what) as refusal:
        GradCAM(layer=layer).bind(teacher, teacher)
    assert "\n" not in str(refusal.value)


def test_a_classifier_that_is_a_convolution_of_one_position_is_passed_over() -> None:
    """MobileNetV2 of pytorchcv ends in one: its map would be flat."""
    own = of(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 4, 1), nn.Flatten()
    )
    teacher = FrozenTeacher(own)
    assert GradCAM().bind(teacher, teacher).teacher == ("_0",)


class DeadEnd(Small):
    """A convolution whose values nothing is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer = super().forward(x)
        self.auxiliary(x)
        return answer


def test_a_dead_end_is_passed_over() -> None:
    teacher = FrozenTeacher(pretrained(DeadEnd()))
    assert GradCAM().bind(teacher, teacher).teacher == ("last", "act1")
    with pytest.raises(ModelError, match="layer=auxiliary that the output depends on"):
        GradCAM(layer="auxiliary").bind(teacher, teacher)


# -- The method -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "settings", "key"),
    [
        (LowPass, {"radius": 0.0}, "radius=0"),
        (LowPass, {"side": 0}, "side=0"),
        (MaskedCrossEntropy, {"threshold": 1.5}, "threshold=1.5"),
        (GradCAM, {"weight": -1.0}, "weight=-1"),
    ],
)
def test_settings_out_of_range_are_refused(
    part: type, settings: dict[str, float], key: str
) -> None:
    with pytest.raises(ConfigurationError, match=key):
        part(**settings)


def test_constants_are_those_of_the_released_code() -> None:
    for name, side, batch, radius in (("synq", 32, 256, 8), ("synq_imagenet", 224, 16, 80)):
        config = composed(f"method={name}", "schedule=released")
        assert config.order == ["synthesis", "calibration", "distillation"]
        hard = config.stages["synthesis"].terms["hard_cross_entropy"]
        assert (hard.weight, hard.gamma) == (0.1, 0.5)
        student = config.stages["distillation"]
        assert (student.steps, student.batch_size) == (97 * 200, batch)
        weights = {key: term.weight for key, term in student.terms.items()}
        assert weights == {"kd": 20, "alignment": 1000, "cross_entropy": 0.5, "cam": 50}
        assert student.terms["cross_entropy"].threshold == 0.5
        assert next(iter(student.transforms)) == "crop_and_flip"  # the filter comes behind it
        found = student.transforms["low_pass"]
        assert (found.radius, found.side) == (radius, side)


class Steps(Callback):
    """Keeps what every step measured."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.scalars: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        self.stages.append(module.progress.stage)
        self.scalars.append({name: float(value) for name, value in module.outcome.scalars.items()})


@pytest.mark.parametrize("quantizer", ["minmax", "lsq"])
def test_two_steps_train_the_student_with_every_term(quantizer: str) -> None:
    module = build_module(
        small("method=synq", f"quantizer={quantizer}", "schedule.student_steps=2")
    )
    weights = {name: p.detach().clone() for name, p in module.student.named_parameters()}
    steps = Steps()
    fit(module, [steps])
    assert list(dict.fromkeys(steps.stages)) == ["synthesis", "calibration", "distillation"]
    assert steps.stages.count("distillation") == 2
    last = steps.scalars[-1]
    for term in ("kd", "alignment", "cross_entropy", "cam"):
        assert last[f"distillation/{term}"] > 0
    assert last["distillation/kd_promoted"] > 0
    # The released code forgets it there.
    assert last["distillation/alignment_promoted"] > 0
    assert last["distillation/cam_promoted"] == 0
    assert any(not torch.equal(p, weights[n]) for n, p in module.student.named_parameters())


def test_signals_are_not_filtered() -> None:
    own = PretrainedNetwork(nn.Identity(), "signals", (6, 32), 4, (0,) * 6, (1,) * 6, "0")
    teacher = SimpleNamespace(pretrained=own)
    with pytest.raises(ModelError, match=r"low_pass filters images .* signals takes \(6, 32\)"):
        LowPass().bind(teacher, teacher)  # type: ignore[arg-type]
