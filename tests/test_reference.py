"""Agreement with the arithmetic that HAST's authors released, number by number.

The file holds what their code gives on a published ResNet-20 and eight fixed images. Every
array in it is computed here once, by this package's own classes. Tolerances are relative to
the largest number of an array: 1e-4 after one pass, 1e-3 for gradients, 1e-2 behind the sign of
the promotion, where a gradient near zero may go the other way.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.config import ModelConfig
from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.source import Site, TrainedSource
from hast_lightning.core.term import Term
from hast_lightning.graph.blocks import find_taps
from hast_lightning.graph.tracing import expose, trace
from hast_lightning.models import zoo
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    WeightQuantizer,
    activation_quantizers,
    held_weights,
)
from hast_lightning.quantization.ranges import affine_parameters
from hast_lightning.quantization.rounding import fake_quantize
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.stages.loss import weighted_loss
from hast_lightning.terms.bns import BNS
from hast_lightning.terms.channel_attention import alignment_losses, channel_attention
from hast_lightning.terms.cross_entropy import HardCrossEntropy, difficulty
from hast_lightning.terms.kl import kl_divergence
from hast_lightning.training.module import ZeroShotQuantization
from hast_lightning.transforms.promotion import promote
from tests.composition import composed
from tests.real_data import cifar10_folder, reference_file
from tests.small_runs import OWN_CALIBRATION, fit

HARD = "stages.synthesis.terms.hard_cross_entropy"
ONE_PASS, GRADIENT, AFTER_SIGN = 1e-4, 1e-3, 1e-2

BITS = (2, 3, 4, 5, 8)
LAYERS = ("conv1", "layer3.2.conv2", "linear")
HARDNESS = {"beta10_gamma2": (10.0, 2.0), "beta0.1_gamma0.5": (0.1, 0.5), "beta1_gamma0": (1.0, 0)}
GRADIENTS_OF = {
    "grad_conv1": "conv1.weight",
    "grad_layer2.0.conv1": "layer2.0.conv1.weight",
    "grad_linear": "linear.weight",
    "grad_bn1_weight": "bn1.weight",
}
STATISTICS = ("bns_mean", "bns_var", "bn_batch_mean_0", "bn_batch_var_0", "bn_batch_mean_last")
ATTENTIONS = ("channel_attention_teacher_0", "channel_attention_student_0")

INPUTS = {"images", "labels", "relu_order", *(f"activation_in_bits{bits}" for bits in BITS)}
# The closest input of a ReLU to zero, -5e-8 after layer2.1 of the teacher, is positive for some
# processors' order of additions: an error of one unit that turns a gradient on.
BORDERLINE = 1e-7
OTHER_SIDE = "image_gradient on the other side"
TOLERANCES: dict[str, float] = {
    **dict.fromkeys(("teacher_logits", "label_probability", "cross_entropy"), ONE_PASS),
    **dict.fromkeys(STATISTICS, ONE_PASS),
    **{f"hard_loss_{name}": ONE_PASS for name in HARDNESS},
    **{f"synthesis_grad_{name}": GRADIENT for name in HARDNESS},
    **{f"weight_{layer}_bits{bits}": ONE_PASS for layer in LAYERS for bits in BITS},
    **{f"activation_out_bits{bits}": ONE_PASS for bits in BITS},
    **dict.fromkeys(("relu_ranges", "student_logits_w3a3", *ATTENTIONS), ONE_PASS),
    **dict.fromkeys(("kl_loss", "alignment_loss"), ONE_PASS),
    "image_gradient": GRADIENT,
    **dict.fromkeys(("kl_loss_perturbed", "alignment_loss_perturbed", *GRADIENTS_OF), AFTER_SIGN),
}


@functools.cache
def reference() -> dict[str, Tensor]:
    with np.load(reference_file()) as archive:
        return {k: torch.from_numpy(archive[k]) for k in archive.files if k != "relu_order"}


@functools.cache
def relu_order() -> list[str]:
    with np.load(reference_file()) as archive:
        return [str(name) for name in archive["relu_order"]]


@functools.cache
def pretrained() -> zoo.PretrainedNetwork:
    checkpoint = cifar10_folder() / "resnet20-12fca82f.th"
    config = ModelConfig("cifar_resnet", "resnet20", checkpoint=str(checkpoint), depth=20)
    return zoo.load(config)


@functools.cache
def taps() -> list[str]:
    return find_taps(trace(pretrained().network))


@functools.cache
def teacher() -> FrozenTeacher:
    return FrozenTeacher(pretrained())


def quantized_student() -> fx.GraphModule:
    """The W3A3 student with the ranges of the reference."""
    student = convert(pretrained().network, QuantizerConfig(bits=3))
    set_reference_ranges(student)
    return student


def set_reference_ranges(student: nn.Module) -> None:
    for quantizer, ends in zip(
        activation_quantizers(student), reference()["relu_ranges"], strict=True
    ):
        quantizer.set_range(*ends)


@functools.cache
def bns() -> BNS:
    """The term, bound to the teacher."""
    term = BNS()
    term.bind(teacher(), teacher())
    return term


def synthesis_step(images: Tensor) -> Seen:
    """What the terms of a synthesis step see."""
    nodes = bns().bind(teacher(), teacher()).teacher
    passed = teacher().trace(images, nodes, unfolded=True)
    return Seen(Batch(images, reference()["labels"]), passed, None, Progress("synthesis", 1, 1))


def compute_teacher() -> Iterator[tuple[str, Tensor]]:
    images, labels = reference()["images"], reference()["labels"]
    seen = synthesis_step(images)
    logits, statistics = seen.teacher.logits, bns().statistics(seen)
    yield "teacher_logits", teacher()(images)
    yield "label_probability", 1 - difficulty(logits, labels)
    yield "cross_entropy", F.cross_entropy(logits, labels, reduction="none")
    means = [F.mse_loss(layer.mean, layer.running_mean) for layer in statistics]
    variances = [F.mse_loss(layer.var, layer.running_var) for layer in statistics]
    yield "bns_mean", torch.stack(means).mean()
    yield "bns_var", torch.stack(variances).mean()
    yield "bn_batch_mean_0", statistics[0].mean
    yield "bn_batch_var_0", statistics[0].var
    yield "bn_batch_mean_last", statistics[-1].mean


def compute_synthesis() -> Iterator[tuple[str, Tensor]]:
    for name, (beta, gamma) in HARDNESS.items():
        images = reference()["images"].clone().requires_grad_()
        terms: dict[str, Term] = {"bns": bns(), "hard": HardCrossEntropy(weight=beta, gamma=gamma)}
        loss = weighted_loss(terms, synthesis_step(images))
        loss.total.backward()
        assert images.grad is not None
        yield f"hard_loss_{name}", loss.values["hard"]
        yield f"synthesis_grad_{name}", images.grad


def compute_quantizer() -> Iterator[tuple[str, Tensor]]:
    for bits in BITS:
        for layer in LAYERS:
            weight = pretrained().network.get_submodule(layer).weight
            yield f"weight_{layer}_bits{bits}", WeightQuantizer(bits)(weight)
        grid = affine_parameters(torch.tensor(0.0), torch.tensor(3.1), bits)
        activations = reference()[f"activation_in_bits{bits}"]
        yield f"activation_out_bits{bits}", fake_quantize(activations, *grid, bits)


def compute_ranges() -> Iterator[tuple[str, Tensor]]:
    """Minima and maxima that one batch of the images has in the network without rounding."""
    student = convert(pretrained().network, QuantizerConfig(bits=3))
    quantizers = activation_quantizers(student)
    for quantizer in quantizers:
        quantizer.register_forward_hook(lambda q, args, _: q.moving_range.observe(args[0]))
    for module in student.modules():
        if hasattr(module, "weight_quantizer"):
            module.weight_quantizer = nn.Identity()
    with torch.no_grad():
        student(reference()["images"])
    yield "relu_ranges", torch.stack([torch.stack(q.moving_range.range()) for q in quantizers])


@contextlib.contextmanager
def borderline_relus_on_the_other_side() -> Iterator[None]:
    """Every input of a ReLU that is as good as zero has the other sign."""

    def turn(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not isinstance(module, nn.ReLU):
            return None
        x = inputs[0]
        return (x - 2 * x.detach() * (x.detach().abs() < BORDERLINE),)

    handle = nn.modules.module.register_module_forward_pre_hook(turn)
    try:
        yield
    finally:
        handle.remove()


def compute_student() -> Iterator[tuple[str, Tensor]]:
    """A student step as HAST describes it, with the parts that the module is made of."""
    student = quantized_student()
    images = reference()["images"].clone().requires_grad_()

    def losses(batch: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        teacher_logits, values, _ = teacher().trace(batch, taps())
        teacher_features = list(values.values())
        student_logits, student_features = expose(student, taps())(batch)
        kl = 20 * kl_divergence(student_logits, teacher_logits, 20)
        alignment = 1000 * alignment_losses(student_features, teacher_features).sum()
        attentions = [channel_attention(f[0]) for f in (teacher_features, student_features)]
        return kl, alignment, [student_logits, *attentions]

    with held_weights(student):
        kl, alignment, seen = losses(images)
        (kl + alignment).backward()
        assert images.grad is not None
        with borderline_relus_on_the_other_side():
            (other_side,) = torch.autograd.grad(sum(losses(images)[:2]), images)
        kl_perturbed, alignment_perturbed, _ = losses(promote(images, images.grad, 0.01))
        (kl_perturbed + alignment_perturbed).backward()
    yield from zip(("student_logits_w3a3", *ATTENTIONS), seen, strict=True)
    yield "kl_loss", kl
    yield "alignment_loss", alignment
    yield "image_gradient", images.grad
    yield OTHER_SIDE, other_side
    yield "kl_loss_perturbed", kl_perturbed
    yield "alignment_loss_perturbed", alignment_perturbed
    parameters = dict(student.named_parameters())
    yield from ((key, parameters[name].grad) for key, name in GRADIENTS_OF.items())


COMPUTATIONS = (
    compute_teacher,
    compute_synthesis,
    compute_quantizer,
    compute_ranges,
    compute_student,
)


@functools.cache
def computed() -> dict[str, Tensor]:
    return {key: value.detach() for computation in COMPUTATIONS for key, value in computation()}


def assert_agrees(key: str, actual: Tensor) -> None:
    expected = reference()[key]
    assert actual.shape == expected.shape
    scale = float(expected.abs().max())
    outside = (actual - expected).abs() > TOLERANCES[key] * scale
    if key == "image_gradient":  # each image on one side of zero or on the other
        outside_there = (computed()[OTHER_SIDE] - expected).abs() > TOLERANCES[key] * scale
        outside = outside.flatten(1).any(1) & outside_there.flatten(1).any(1)
    assert not outside.any()


@pytest.mark.parametrize("key", TOLERANCES)
def test_a_value_agrees_with_the_reference(key: str) -> None:
    assert_agrees(key, computed()[key])


def test_every_array_of_the_file_is_an_input_or_is_computed_here() -> None:
    with np.load(reference_file()) as archive:
        assert set(archive.files) == INPUTS | set(TOLERANCES)
    assert set(computed()) == set(TOLERANCES) | {OTHER_SIDE}


def test_activations_are_quantized_in_the_order_of_the_reference() -> None:
    quantizers = quantized_student().get_submodule("activation_quantizers")
    order = [name for name, _ in quantizers.named_children()]
    assert order == [name.replace(".", "_") for name in relu_order()]


def test_taps_are_the_nine_residual_bodies_after_their_second_batch_norm() -> None:
    assert taps() == [f"layer{i}_{j}_bn2" for i in (1, 2, 3) for j in range(3)]


class FixedImages(TrainedSource):
    """A source that has only the images of the reference."""

    def build(self, site: Site) -> None:
        super().build(site)
        self.images = nn.Parameter(reference()["images"].clone())
        self.loss = float("nan")

    def propose(self) -> Batch:
        return Batch(self.images, reference()["labels"])

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"sgd": torch.optim.SGD([self.images], lr=1e-9)}

    def improved(self, loss: float, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self.loss = loss

    def sample(self, count: int) -> Batch:
        return Batch(reference()["images"].clone(), reference()["labels"])


class ReferenceRanges(Callback):
    """Sets the ranges of the reference when the student is calibrated."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, ZeroShotQuantization)
        if pl_module.progress.stage == "calibration":
            set_reference_ranges(pl_module.student)


def trained(*overrides: str) -> ZeroShotQuantization:
    """The whole module, driven by Lightning, with the recipe's own settings; a step a stage."""
    config = composed(
        "+experiment=cifar10_resnet20_w3a3",
        "data=none",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        f"model.checkpoint={cifar10_folder() / 'resnet20-12fca82f.th'}",
        "stages.synthesis.steps=1",
        "stages.calibration.steps=1",
        "stages.distillation.steps=1",
        "stages.distillation.transforms.crop_and_flip.probability=0",
        *overrides,
    )
    images = FixedImages()
    images.build(Site(pretrained(), key="sources.bank"))
    module = ZeroShotQuantization(config, pretrained(), {"bank": images})
    fit(module, [ReferenceRanges()])
    assert module.iteration == len(config.order)
    return module


def test_the_modules_student_step_gives_the_losses_and_gradients_of_the_reference() -> None:
    module = trained("order=[calibration,distillation]", *OWN_CALIBRATION)
    logged = {
        "kl_loss": "kd",
        "alignment_loss": "alignment",
        "kl_loss_perturbed": "kd_promoted",
        "alignment_loss_perturbed": "alignment_promoted",
    }
    for key, name in logged.items():
        assert_agrees(key, torch.as_tensor(module.outcome.scalars[f"distillation/{name}"]))
    parameters = dict(module.student.named_parameters())
    for key, name in GRADIENTS_OF.items():
        gradient = parameters[name].grad
        assert gradient is not None
        assert_agrees(key, gradient)


@pytest.mark.parametrize("name", HARDNESS)
def test_the_modules_generator_step_gives_the_gradient_of_the_reference(name: str) -> None:
    beta, gamma = HARDNESS[name]
    module = trained("order=[synthesis]", f"{HARD}.weight={beta}", f"{HARD}.gamma={gamma}")
    source = module.source
    assert isinstance(source, FixedImages)
    assert source.images.grad is not None
    assert_agrees(f"synthesis_grad_{name}", source.images.grad)
    bns = reference()["bns_mean"] + reference()["bns_var"]
    expected = float(bns + reference()[f"hard_loss_{name}"])
    assert source.loss == pytest.approx(expected, rel=ONE_PASS)


def test_hardness_switched_off_is_the_plain_cross_entropy() -> None:
    module = trained("order=[synthesis]", f"{HARD}.by_difficulty=false", f"{HARD}.weight=1")
    assert isinstance(module.source, FixedImages)
    assert module.source.images.grad is not None
    assert_agrees("synthesis_grad_beta1_gamma0", module.source.images.grad)
