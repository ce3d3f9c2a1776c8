"""IntraQ's terms against plain references, their state, and the method in two real steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.graph.classifier import classifier_input
from hast_lightning.methods.intraq import (
    ClassMargin,
    SoftTarget,
    margin_losses,
    soft_target_loss,
)
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.stages.synthesize import Synthesize
from hast_lightning.training.module import ZeroShotQuantization
from tests.small_runs import build_module, fit, small

CLASSES, FEATURES = 3, 4


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TinyNetwork(nn.Module):
    """Maps (N, 2, 4, 4) to three classes, the last layer a convolution or a linear one."""

    def __init__(self, *, convolution: bool = False) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, FEATURES, 3)
        self.norm = nn.BatchNorm2d(FEATURES)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Conv2d(FEATURES, CLASSES, 1) if convolution else nn.Linear(FEATURES, CLASSES)
        self.flatten_first = not convolution

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(torch.relu(self.norm(self.body(images))))
        output: Tensor = self.last(maps.flatten(1) if self.flatten_first else maps)
        return output.flatten(1)


def teacher_of(network: nn.Module) -> FrozenTeacher:
    torch.manual_seed(0)
    pretrained = PretrainedNetwork(
        network.eval(), "tiny", (2, 4, 4), CLASSES, (0.5, 0.5), (0.5, 0.5), "none"
    )
    return FrozenTeacher(pretrained)


def features_of(network: nn.Module, last: nn.Module, images: Tensor) -> Tensor:
    """What the last layer is given, found by a hook and not by the graph."""
    found = []
    handle = last.register_forward_pre_hook(lambda _, given: found.append(given[0].flatten(1)))
    with torch.no_grad():
        network(images)
    handle.remove()
    return found[0]


def seen(teacher: FrozenTeacher, images: Tensor, labels: Tensor, node: str) -> Seen:
    trace = teacher.trace(images, (node,))
    return Seen(Batch(images, labels), trace, None, Progress("synthesis", 1, 1))


# -- Formulas ---------------------------------------------------------------------------------


def test_the_soft_target_loss_is_the_squared_error_of_the_probability_of_the_label() -> None:
    logits, labels = numbers(5, CLASSES) * 3, torch.tensor([0, 2, 1, 1, 0])
    targets = torch.tensor([1.0, 0.95, 0.97, 1.0, 0.6])
    expected = 0.0
    for row, label, target in zip(logits.tolist(), labels.tolist(), targets.tolist(), strict=True):
        exponentials = [math.exp(value) for value in row]
        expected += (exponentials[label] / sum(exponentials) - target) ** 2 / len(labels)
    assert soft_target_loss(logits, labels, targets).item() == pytest.approx(expected, rel=1e-5)


def test_the_margins_are_hinges_of_the_cosine_distance_averaged_over_known_classes() -> None:
    features, centers = numbers(6, FEATURES), numbers(6, FEATURES, seed=1)
    centers[0] = features[0] * 2  # as near as can be
    centers[1] = -features[1]  # as far as can be
    known = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    lower, upper = 0.3, 0.9
    near = far = 0.0
    for f, c, counts in zip(features.tolist(), centers.tolist(), known.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(f, c, strict=True))
        distance = 1 - dot / math.hypot(*f) / math.hypot(*c)
        near += counts * max(lower - distance, 0) / 4
        far += counts * max(distance - upper, 0) / 4
    found = margin_losses(features, centers, lower, upper, known).tolist()
    assert found == pytest.approx([near, far], rel=1e-5)
    assert near > 0.05 and far > 0.25  # both hinges are open here


def test_margins_of_zero_and_two_let_every_distance_pass() -> None:
    features, centers = numbers(64, FEATURES), numbers(64, FEATURES, seed=1)
    found = margin_losses(features, centers, 0.0, 2.0, torch.ones(64))
    torch.testing.assert_close(found, torch.zeros(2), atol=1e-6, rtol=0)


# -- Targets ----------------------------------------------------------------------------------


def bound_target(**settings: float) -> SoftTarget:
    term = SoftTarget(**settings)
    teacher = teacher_of(TinyNetwork())
    needs = term.bind(teacher, teacher)
    assert (needs.labels, needs.finished) == ("hard", True)
    return term


def test_half_of_the_targets_are_one_and_the_others_uniform_from_the_lowest_on() -> None:
    torch.manual_seed(3)
    targets = bound_target(lowest=0.6).targets(20_000)
    soft = targets[targets < 1]
    assert len(soft) / len(targets) == pytest.approx(0.5, abs=0.02)
    assert soft.min() >= 0.6
    assert soft.mean().item() == pytest.approx(0.8, abs=0.01)


def test_with_the_constants_of_imagenet_every_image_is_to_be_certain() -> None:
    assert bool((bound_target(lowest=1.0).targets(1000) == 1).all())


def test_targets_stay_while_a_batch_is_under_way_and_are_drawn_anew_for_the_next() -> None:
    torch.manual_seed(3)
    term = bound_target(lowest=0.1)
    first = term.targets(32)
    torch.rand(100)
    assert torch.equal(term.targets(32), first)
    term.finished(Batch(numbers(32, 2, 4, 4), torch.zeros(32, dtype=torch.int64)))
    assert not torch.equal(term.targets(32), first)


def test_targets_leave_the_random_numbers_of_the_run_as_they_are_and_differ_by_seed() -> None:
    torch.manual_seed(3)
    term = bound_target(lowest=0.1)
    before = torch.get_rng_state()
    first = term.targets(32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert not torch.equal(term.targets(32), first)


# -- Class means ------------------------------------------------------------------------------


@pytest.mark.parametrize("convolution", [False, True])
def test_the_features_are_what_the_last_layer_takes_in(convolution: bool) -> None:
    network = TinyNetwork(convolution=convolution)
    teacher, images = teacher_of(network), numbers(5, 2, 4, 4)
    node, width = classifier_input(teacher)
    assert width == FEATURES
    found = teacher.trace(images, (node,)).values[node].flatten(1)
    torch.testing.assert_close(found, features_of(network, network.last, images))


def test_a_network_that_ends_in_no_layer_of_products_is_refused() -> None:
    teacher = teacher_of(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(32)))
    with pytest.raises(ModelError, match="the network tiny ends in no linear layer or convolution"):
        ClassMargin().bind(teacher, teacher)


def test_the_first_batch_has_no_feature_loss_and_no_gradient_of_one() -> None:
    teacher = teacher_of(TinyNetwork())
    term = ClassMargin(lower=2.0, upper=2.0)
    (node,) = term.bind(teacher, teacher).teacher
    images = numbers(8, 2, 4, 4).requires_grad_()
    losses = term(seen(teacher, images, torch.arange(8) % CLASSES, node))
    losses.sum().backward()
    assert losses.tolist() == [0, 0]
    assert images.grad is not None
    assert not images.grad.any()


def test_means_are_of_all_finished_images_and_classes_without_any_do_not_count() -> None:
    network = TinyNetwork()
    teacher = teacher_of(network)
    term = ClassMargin(lower=0.2, upper=0.4)
    (node,) = term.bind(teacher, teacher).teacher
    # More than go through the teacher at once; class 2 has no image.
    batches = [(numbers(150, 2, 4, 4, seed=s), torch.arange(150) % (s + 1)) for s in range(2)]
    for images, labels in batches:
        term.finished(Batch(images, labels))
    made = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    features = features_of(network, network.last, made)
    means = [features[labels == label].mean(0) for label in range(2)]

    now, of_class = numbers(9, 2, 4, 4, seed=7), torch.arange(9) % CLASSES
    features = features_of(network, network.last, now)
    near, far = [], []
    for feature, label in zip(features, of_class.tolist(), strict=True):
        if label < 2:
            cosine = feature @ means[label] / feature.norm() / means[label].norm()
            near.append(max(0.2 - (1 - cosine.item()), 0))
            far.append(max((1 - cosine.item()) - 0.4, 0))
    expected = [sum(near) / len(near), sum(far) / len(far)]
    found = term(seen(teacher, now, of_class, node))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert sum(expected) > 0.01


def test_weights_of_samples_count_in_both_terms() -> None:
    teacher = teacher_of(TinyNetwork())
    margin, target = ClassMargin(lower=0.5, upper=0.6), SoftTarget(lowest=0.2)
    (node,) = margin.bind(teacher, teacher).teacher
    target.bind(teacher, teacher)
    images, labels = numbers(6, 2, 4, 4), torch.arange(6) % CLASSES
    margin.finished(Batch(numbers(30, 2, 4, 4, seed=1), torch.arange(30) % CLASSES))
    for term in (margin, target):
        alone = seen(teacher, images, labels, node)
        first = Trace(alone.teacher.logits[:3], {node: alone.teacher.values[node][:3]})
        half = alone._replace(batch=Batch(images[:3], labels[:3]), teacher=first)
        weights = torch.tensor([1.0, 1, 1, 0, 0, 0])
        weighted = alone._replace(batch=alone.batch._replace(weights=weights))
        if term is target:  # the draws of three images are not the first three of six
            first = target.targets(6)[:3]
            expected = soft_target_loss(half.teacher.logits, labels[:3], first)
        else:
            expected = term(half)
        torch.testing.assert_close(term(weighted), expected)


# -- The method -------------------------------------------------------------------------------


def margin_of(module: ZeroShotQuantization) -> ClassMargin:
    synthesis = module.stages["synthesis"]
    assert isinstance(synthesis, Synthesize)
    term = synthesis.terms["class_margin"]
    assert isinstance(term, ClassMargin)
    return term


def finite(module: ZeroShotQuantization) -> bool:
    return all(bool(p.isfinite().all()) for p in module.student.parameters())


def test_it_runs_and_its_means_are_those_of_the_images_in_the_bank() -> None:
    """Features of finished images without crops, after the last step: what the bank holds."""
    module = build_module(small("method=intraq", "data.holdout=0"))
    before = [p.detach().clone() for p in module.student.parameters()]
    fit(module)
    bank = module.sources["bank"]
    assert isinstance(bank, ImageBank)
    term, network = margin_of(module), module.teacher.pretrained.network
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    features = features_of(network, last, bank.images)
    for label in range(10):
        member = bank.labels == label
        assert term.counts[label] == member.sum()
        torch.testing.assert_close(term.sums[label], features[member].sum(0), atol=1e-3, rtol=1e-4)
    assert finite(module)
    after = list(module.student.parameters())
    assert any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_means_do_not_move_with_the_images_under_way() -> None:
    config = small("method=intraq", "schedule.image_steps=3")
    module = build_module(config)
    counts = []
    stage = module.stages["synthesis"]
    whole_step = stage.step

    def step(*arguments: object) -> object:
        outcome = whole_step(*arguments)  # type: ignore[arg-type]
        counts.append(margin_of(module).counts.sum().item())
        return outcome

    stage.step = step  # type: ignore[assignment, method-assign]
    fit(module)
    assert counts == [0, 0, 32, 32, 32, 64]


def test_a_generator_which_finishes_no_image_is_refused_by_name() -> None:
    config = small(
        "method=intraq",
        "source@sources.bank=generator",
        "sources.bank.batch_size=8",
        "stages.synthesis.steps=6",
    )
    with pytest.raises(ConfigurationError) as refused:
        build_module(config)
    assert str(refused.value) == (
        "stages.synthesis.terms.soft_target: the term soft_target learns from finished samples, "
        "and a source of kind generator finishes none"
    )


def test_margins_in_the_wrong_order_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError) as refused:
        small("method=intraq", "stages.synthesis.terms.class_margin.lower=0.9")
    assert str(refused.value) == (
        "stages.synthesis.terms.class_margin.upper=0.8 must be at least 0.9 and at most 2"
    )


def test_the_student_has_the_released_loss() -> None:
    """``20 * 400 * KL + CE``, KL a mean over the batch alone."""
    terms = small("method=intraq").stages["distillation"].all_terms[""]
    student, teacher = numbers(6, 10), numbers(6, 10, seed=1)
    labels = torch.arange(6)
    inputs = Batch(numbers(6, 1, 8, 8), labels)
    view = Seen(inputs, Trace(teacher, {}), Trace(student, {}), Progress("distillation", 1, 1))
    found = sum(term.weight * term(view) for term in terms.values())
    t, s = (teacher / 20).softmax(1), (student / 20).softmax(1)
    divergence = (t * (t.log() - s.log())).sum() / 6
    likelihood = student.softmax(1)[torch.arange(6), labels].log().mean()
    torch.testing.assert_close(found, 20 * 400 * divergence - likelihood, rtol=1e-4, atol=0)
