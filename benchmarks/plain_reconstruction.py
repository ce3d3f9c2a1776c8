"""A plain implementation of block reconstruction, to be compared with.

The same mathematics as the product's stage with free weights and fixed ranges, arranged as the
released code of BRECQ (Li et al., ICLR 2021) and QDrop (Wei et al., ICLR 2022) arranges it: hooks
read the inputs and outputs of each block from passes through the whole networks, BatchNorms are
layers of their own, and fake quantization is a chain of elementwise operations.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.optim import Adam

from benchmarks.plain import PlainActivation, quantized_copy
from hast_lightning.models.resnet import BasicBlock, CifarResNet
from hast_lightning.stages.reconstruct import Reconstruct

CHUNK = 128
"""Images that go through the whole networks at once."""


class Dropped(nn.Module):
    """Leaves each value that an activation puts out in floating point with a probability."""

    def __init__(self, inner: PlainActivation, probability: float) -> None:
        super().__init__()
        self.inner, self.probability = inner, probability
        self.active = self.bypassed = False

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x`` but for the values that are drawn."""
        if self.bypassed:
            return x
        rounded: Tensor = self.inner(x)
        if not self.active:
            return rounded
        return torch.where(torch.rand_like(x) < self.probability, x, rounded)


def with_dropping(network: nn.Module, probability: float) -> nn.Module:
    """``network`` with every quantized activation wrapped."""
    for name, child in network.named_children():
        if isinstance(child, PlainActivation):
            setattr(network, name, Dropped(child, probability))
        else:
            with_dropping(child, probability)
    return network


def pieces(network: CifarResNet) -> list[nn.Module]:
    """What is rebuilt in turn: the first layer, every residual block, the classifier."""
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock)]
    first = nn.Sequential(network.conv1, network.bn1, network.relu)
    last = nn.Sequential(network.pool, nn.Flatten(), network.linear)
    return [first, *blocks, last]


class PlainReconstruction:
    """Rebuilds the pieces of a ResNet one after the other."""

    def __init__(
        self, network: CifarResNet, bits: tuple[int, int], stage: Reconstruct, images: Tensor
    ) -> None:
        self.stage, self.images = stage, images
        self.teacher = copy.deepcopy(network).eval().requires_grad_(False)
        self.student = with_dropping(quantized_copy(network, *bits), stage.drop)
        self.pieces = list(zip(pieces(self.teacher), pieces(self.student), strict=True))
        # What a piece puts out is rounded where the next one takes it in.
        ends = [self.student.relu, *(b.relu2 for b in pieces(self.student)[1:-1])]
        self.entries = [None, *(end[1] for end in ends), None]
        self._done = 0

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Let the activation ranges observe ``images``, and stop observing."""
        self.student(images)
        for module in self.student.modules():
            if isinstance(module, PlainActivation):
                module.observing = False

    @torch.no_grad()
    def _read(self, network: nn.Module, first: nn.Module, last: nn.Module) -> tuple[Tensor, Tensor]:
        """What the module ``first`` takes in and what ``last`` puts out, for all images."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        handles = [
            first.register_forward_pre_hook(lambda _, given: inputs.append(given[0].cpu())),
            last.register_forward_hook(lambda _, given, output: outputs.append(output.cpu())),
        ]
        for part in torch.split(self.images, CHUNK):
            network(part)
        for handle in handles:
            handle.remove()
        return torch.cat(inputs), torch.cat(outputs)

    def _enter(self, number: int) -> None:
        teacher, student = self.pieces[number]
        ends = list(teacher) if isinstance(teacher, nn.Sequential) else [teacher]
        self._floating, self._target = self._read(self.teacher, ends[0], ends[-1])
        self._entry, leaving = self.entries[number : number + 2]
        if self._entry is not None:
            self._entry.bypassed = False
        first = next(iter(student)) if isinstance(student, nn.Sequential) else student
        first = first if self._entry is None else self._entry
        self._quantized, _ = self._read(self.student, first, first)
        if leaving is not None:
            leaving.bypassed = True
        self._piece = student
        self._optimizer = Adam(student.parameters(), lr=self.stage.lr)
        self.error = float(self._loss(slice(0, CHUNK), 0.0).detach())

    def _loss(self, index: Tensor | slice, floating_share: float) -> Tensor:
        """The piece's error on some of the images, whose inputs are mixed of both networks'."""
        floating, quantized, target = (
            each[index].to(self.images.device)
            for each in (self._floating, self._quantized, self._target)
        )
        drawn = torch.rand_like(quantized) < floating_share
        inputs = torch.where(drawn, floating, quantized)
        outputs = self._piece(inputs if self._entry is None else self._entry(inputs))
        return (outputs - target).pow(2).sum(dim=1).mean()

    def iterate(self) -> float:
        """Do one iteration for the piece whose turn it is; returns its loss."""
        number, iteration = divmod(self._done, self.stage.iterations)
        if iteration == 0:
            self._enter(number)
        self._done += 1
        index = torch.randint(len(self._target), (self.stage.batch_size,))
        share = iteration / self.stage.iterations
        self._optimizer.param_groups[0]["lr"] = (
            self.stage.lr * 0.5 * (1 + math.cos(math.pi * share))
        )
        inside = [self._entry, *self._piece.modules()]
        dropping = [module for module in inside if isinstance(module, Dropped)]
        for each in dropping:
            each.active = True
        loss = self._loss(index, 1 - self.stage.mix)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        for each in dropping:
            each.active = False
        return loss.item()
