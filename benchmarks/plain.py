"""A plain implementation of the published HAST procedure, to be compared with.

The same mathematics as the product's, arranged as the released procedure arranges it (Li et
al., CVPR 2023): ordinary modules with forward hooks, BatchNorms as layers of their own, a
teacher whose parameters still ask for gradients, fake quantization as a chain of elementwise
operations, images augmented one by one. Where the procedure leaves a choice the faster one is
taken, so that the comparison errs on the plain side.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models.mobilenetv2 import InvertedResidual

from hast_lightning.models.resnet import BasicBlock
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.stages.distill import Distill
from hast_lightning.stages.synthesize import Synthesize

RANGE_MOMENTUM = 0.9
NARROWEST_RANGE = 1e-8


class RoundToGrid(torch.autograd.Function):
    """Quantize and dequantize, one elementwise operation after another; gradient unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """Round ``x`` to ``2^bits`` levels between ``low`` and ``high``."""
        largest = 2**bits - 1
        scale = torch.clamp(high - low, min=NARROWEST_RANGE) / largest
        zero_point = torch.round(-low / scale)
        integers = torch.clamp(torch.round(x / scale) + zero_point, 0, largest)
        return (integers - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Straight through."""
        return gradients[0], None, None, None


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """``weight`` rounded between the extremes of each output channel."""
    rows = weight.detach().flatten(1)
    shape = (-1, *(1 for _ in weight.shape[1:]))
    low, high = rows.min(dim=1).values.view(shape), rows.max(dim=1).values.view(shape)
    return RoundToGrid.apply(weight, low, high, bits)


class PlainConv2d(nn.Module):
    """A convolution that rounds its weights at every pass."""

    def __init__(self, layer: nn.Conv2d, bits: int) -> None:
        super().__init__()
        self.layer, self.bits = layer, bits

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the rounded weights."""
        layer = self.layer
        weight = rounded_weight(layer.weight, self.bits)
        return F.conv2d(
            x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )


class PlainLinear(nn.Module):
    """A linear layer that rounds its weights at every pass."""

    def __init__(self, layer: nn.Linear, bits: int) -> None:
        super().__init__()
        self.layer, self.bits = layer, bits

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the rounded weights."""
        return F.linear(x, rounded_weight(self.layer.weight, self.bits), self.layer.bias)


class PlainActivation(nn.Module):
    """Rounds what an activation puts out; averages its range while ``observing``."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.observing = True
        self.observed = 0
        self.register_buffer("low_sum", torch.zeros(()))
        self.register_buffer("high_sum", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x`` to the average range."""
        if self.observing:
            with torch.no_grad():
                self.low_sum.lerp_(x.min(), 1 - RANGE_MOMENTUM)
                self.high_sum.lerp_(x.max(), 1 - RANGE_MOMENTUM)
            self.observed += 1
        weight = 1 - RANGE_MOMENTUM**self.observed
        return RoundToGrid.apply(x, self.low_sum / weight, self.high_sum / weight, self.bits)


def quantized_copy(network: nn.Module, weight_bits: int, activation_bits: int) -> nn.Module:
    """A copy of ``network`` with every convolution, linear layer and ReLU quantized."""

    def quantized(module: nn.Module) -> nn.Module:
        if isinstance(module, nn.Conv2d):
            return PlainConv2d(module, weight_bits)
        if isinstance(module, nn.Linear):
            return PlainLinear(module, weight_bits)
        if isinstance(module, nn.ReLU | nn.ReLU6):
            return nn.Sequential(module, PlainActivation(activation_bits))
        for name, child in module.named_children():
            setattr(module, name, quantized(child))
        return module

    return quantized(copy.deepcopy(network)).eval()


def block_ends(network: nn.Module) -> list[str]:
    """Names of the modules whose outputs are aligned: the BatchNorm that ends each block."""
    ends = []
    for name, module in network.named_modules():
        if isinstance(module, BasicBlock):
            ends.append(f"{name}.bn2")
        elif isinstance(module, InvertedResidual):
            ends.append(f"{name}.conv.{len(module.conv) - 1}")
    return ends


class AttentionHooks:
    """Collects the channel attention of some modules' outputs at every pass."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self._attentions: list[Tensor] = []
        for name in names:
            network.get_submodule(name).register_forward_hook(self._collect)

    def _collect(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._attentions.append(F.normalize(output.pow(2).mean(dim=(2, 3)), dim=1))

    def take(self) -> list[Tensor]:
        """What was collected since the last call."""
        attentions, self._attentions = self._attentions, []
        return attentions


class PlainDistillation:
    """The student step: two separate forward passes, an image gradient, one backward pass."""

    def __init__(self, network: nn.Module, bits: tuple[int, int], stage: Distill) -> None:
        self.stage = stage
        self.teacher = copy.deepcopy(network).eval()
        self.student = quantized_copy(network, *bits)
        names = block_ends(network)
        self._teacher_attention = AttentionHooks(self.teacher, names)
        self._student_attention = AttentionHooks(self.student, names)
        self.optimizer = SGD(
            self.student.parameters(),
            lr=stage.optimizer.lr,
            momentum=stage.optimizer.momentum,
            nesterov=True,
            weight_decay=stage.optimizer.weight_decay,
        )

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Let the activation ranges observe ``images``."""
        self.student(images)
        self._student_attention.take()

    def freeze_ranges(self) -> None:
        """Stop observing."""
        for module in self.student.modules():
            if isinstance(module, PlainActivation):
                module.observing = False

    def _loss(self, images: Tensor, teacher_logits: Tensor) -> Tensor:
        kd, alignment = self.stage.terms["kd"], self.stage.terms["alignment"]
        logits = self.student(images)
        divergence = F.kl_div(
            F.log_softmax(logits / kd.temperature, dim=1),
            F.softmax(teacher_logits / kd.temperature, dim=1),
            reduction="batchmean",
        )
        pairs = zip(self._student_attention.take(), self._teacher_attention.take(), strict=True)
        distance = sum((student - teacher).pow(2).mean() for student, teacher in pairs)
        return kd.weight * kd.temperature**2 * divergence + alignment.weight * distance

    def step(self, images: Tensor) -> Tensor:
        """Train on ``images`` and on their promoted copies; returns the summed loss."""
        images = images.detach().requires_grad_()
        loss = self._loss(images, self.teacher(images))
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
        with torch.no_grad():
            perturbed = images + self.stage.transforms["promotion"].eps * torch.sign(gradient)
            teacher_logits = self.teacher(perturbed)
        total = loss + self._loss(perturbed, teacher_logits)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return total.detach()


class AugmentedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images that are cropped and flipped one by one as they are fetched."""

    def __init__(self, images: Tensor, labels: Tensor, augment: bool) -> None:
        self.images, self.labels = images, labels
        self.transform = nn.Identity()
        if augment:
            size = tuple(images.shape[2:])
            self.transform = transforms.Compose(
                [
                    transforms.RandomResizedCrop(size, scale=(0.5, 1.0)),
                    transforms.RandomHorizontalFlip(),
                ]
            )

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]

    def __len__(self) -> int:
        return len(self.images)


def endless_batches(dataset: AugmentedImages, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled epochs without end, loaded in the training process as the released code does."""
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    while True:
        yield from loader


class PlainSynthesis:
    """The synthesis iteration: Adam on a batch of images through BatchNorm hooks."""

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        bank: ImageBank,
        stage: Synthesize,
    ) -> None:
        self.stage = stage
        self.teacher = copy.deepcopy(network).eval()
        self._statistics: list[tuple[Tensor, Tensor, nn.BatchNorm2d]] = []
        for module in self.teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(self._observe)
        self.images = images.detach().clone().requires_grad_()
        self.labels = labels.clone()
        self.optimizer = Adam([self.images], lr=bank.lr)
        self.plateau = ReduceLROnPlateau(
            self.optimizer,
            factor=bank.factor,
            patience=bank.patience,
            min_lr=bank.min_lr,
        )
        augmentation = stage.transforms["crop_and_flip"]
        self._augmented = augmentation.probability if augmentation.enabled else 0.0
        self._augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    tuple(images.shape[2:]), scale=(augmentation.min_scale, augmentation.max_scale)
                ),
                transforms.RandomHorizontalFlip(augmentation.flip),
            ]
        )
        self.accuracy = 0.0

    def _observe(self, module: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        (x,) = inputs
        mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
        self._statistics.append((mean, var, module))

    def _batch(self) -> Tensor:
        augmented = random.random() < self._augmented
        rebuilt = []
        for position in range(len(self.images)):
            image = self.images[position]
            rebuilt.append(self._augment(image) if augmented else image)
        return torch.stack(rebuilt)

    def _hard_cross_entropy(self, logits: Tensor) -> Tensor:
        probability = F.softmax(logits, dim=1).gather(1, self.labels.unsqueeze(1)).squeeze(1)
        cross_entropy = F.cross_entropy(logits, self.labels, reduction="none")
        return (
            (1 - probability).pow(self.stage.terms["hard_cross_entropy"].gamma) * cross_entropy
        ).mean()

    def iterate(self) -> float:
        """One optimizer step on the batch; returns its loss."""
        self._statistics.clear()
        logits = self.teacher(self._batch())
        guesses = np.argmax(logits.detach().cpu().numpy(), axis=1)
        self.accuracy = float(np.mean(guesses == self.labels.cpu().numpy()))
        distances = [
            F.mse_loss(mean, norm.running_mean) + F.mse_loss(var, norm.running_var)
            for mean, var, norm in self._statistics
        ]
        bns = sum(distances) / len(distances)
        hard = self._hard_cross_entropy(logits)
        terms = self.stage.terms
        loss = terms["bns"].weight * bns + terms["hard_cross_entropy"].weight * hard
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        self.plateau.step(value)
        return value
