"""Quantizers whose step sizes are parameters of the student, trained with its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.quantization.axes import QuantizerSettings
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    ActivationQuantizer,
    WeightQuantizer,
)
from hast_lightning.quantization.lsq import (
    gradient_scale,
    in_units_of,
    integer_zero_point,
    learned_fake_quantize,
    positive,
)
from hast_lightning.quantization.per_tensor import FoldedFactors
from hast_lightning.quantization.ranges import AffineParameters
from hast_lightning.quantization.search import LeastSquares, least_squares

LR_MULTIPLIER = "lr_multiplier"
"""Key of an optimizer's parameter group: what its learning rate is multiplied by."""


class LearnedWeightQuantizer(WeightQuantizer):
    """Symmetric, with one learned step size per output channel, or layer where they share it (LSQ).

    The parameter is a multiple of the step size at the start (see :func:`lsq.in_units_of`).

    Args:
        bits: 2 to 8.
        weight: What it is for, (out_channels, ...): step sizes start where the squared error
            of rounding it is least.
        gradient: Of weights outside their range: ``clipped`` as in the paper, or
            ``pass_through``.
    """

    first_step_size: Tensor
    lr_multiplier = 1.0

    def __init__(self, bits: int, weight: Tensor, gradient: str = "clipped") -> None:
        super().__init__(
            bits, include_zero=True, symmetric=True, find=least_squares, gradient=gradient
        )
        self._begin(weight)

    @torch.no_grad()
    def change_bits(self, bits: int, weight: Tensor) -> None:
        """Begin anew with other bits, from the step sizes of least squared error."""
        self.set_bits(bits)
        self.first_step_size.copy_(self._least_squares(weight))
        self.relative_step_size.fill_(1)

    def share(self, factors: FoldedFactors, weight: Tensor) -> None:
        """Learn one step size from now on."""
        super().share(factors, weight)
        self._begin(weight)

    def _begin(self, weight: Tensor) -> None:
        self.register_buffer("first_step_size", self._least_squares(weight))
        self.relative_step_size = nn.Parameter(torch.ones_like(self.first_step_size))

    def _least_squares(self, weight: Tensor) -> Tensor:
        """Return the step sizes of least squared error, (out_channels, 1, ...) or (1, 1, ...)."""
        if self.factors is None:
            return super().parameters_of(weight).scale.detach()
        return super().shared_parameters(weight).scale.view((1,) * weight.dim())

    def parameters_of(self, weight: Tensor) -> AffineParameters:
        """Return scale and zero point, (out_channels, 1, ...), whatever the weights are."""
        return self._centred(self._step_sizes().detach())

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weights, with LSQ's gradients of weights and step sizes."""
        highest = 2 ** (self.bits - 1) - 1
        sharing = weight[0] if self.factors is None else weight
        parameters = self._centred(self._step_sizes(gradient_scale(sharing.numel(), highest)))
        rounded = None if self._held is None else self._held.value
        return learned_fake_quantize(weight, *parameters, self.bits, self.gradient, rounded)

    def shared_parameters(self, weight: Tensor) -> AffineParameters:
        """Return the one scale and zero point, scalars, whatever the weights are."""
        return self._centred(self._learned().detach().view(()))

    def _learned(self, g: float = 1.0) -> Tensor:
        return positive(in_units_of(self.first_step_size, self.relative_step_size, g))

    def _step_sizes(self, g: float = 1.0) -> Tensor:
        learned = self._learned(g)
        return learned if self.factors is None else self.factors.unfold(learned)

    def _centred(self, scale: Tensor) -> AffineParameters:
        return AffineParameters(scale, torch.full_like(scale, 2 ** (self.bits - 1)))


class LearnedActivationQuantizer(ActivationQuantizer):
    """Calibrated like any other, and trained from there: LSQ, with LSQ+'s offset.

    Where the calibrated range begins at zero, as behind a ReLU, the offset stays zero. The
    parameters are the step size in units of the calibrated one, and the offset in units of the
    calibrated range.
    """

    relative_step_size: nn.Parameter
    relative_offset: nn.Parameter
    first_step_size: Tensor
    lr_multiplier = 1.0

    def _allocate(self) -> None:
        # They exist before their values are known: optimizers are built before calibration.
        self.relative_step_size = nn.Parameter(torch.ones(()))
        self.relative_offset = nn.Parameter(torch.zeros(()))
        self.register_buffer("first_step_size", torch.full((), torch.nan))
        # Whether the offset is learned; beside the parameter, so that no pass has to look.
        self._shifted = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._shifted = bool(self.relative_offset != 0)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]  # follows from the parameters
        """Return the step size now, a float32 scalar without gradient; NaN if uncalibrated."""
        return self._learned_parameters().scale.detach()

    @property
    def zero_point(self) -> Tensor:  # type: ignore[override]  # follows from the parameters
        """Return the integer that stands for zero now, a float32 scalar without gradient."""
        return self._learned_parameters().zero_point.detach()

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Start training from the range ``[low, high]`` (scalars), and quantize from now on."""
        scale, zero_point = self.grid.parameters(low, high)
        self.first_step_size.copy_(scale)
        self.relative_step_size.fill_(1)
        self.relative_offset.copy_(-zero_point / self._steps)
        self._shifted = bool(zero_point != 0)
        self.mode = ActivationMode.QUANTIZE

    def quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x`` (N, ...), with LSQ's gradients."""
        parameters = self._learned_parameters(gradient_scale(x[0].numel(), self._steps))
        return learned_fake_quantize(x, *parameters, self.bits, self.gradient)

    @property
    def _steps(self) -> int:
        return int(2**self.bits - 1)

    def _learned_parameters(self, g: float = 1.0) -> AffineParameters:
        first = self.first_step_size
        scale = positive(in_units_of(first, self.relative_step_size, g))
        zero_point = torch.zeros_like(self.relative_offset)
        if self._shifted:
            offset = in_units_of(self._steps * first, self.relative_offset, g)
            zero_point = integer_zero_point(offset, scale, self.bits, self.include_zero)
        return AffineParameters(scale, zero_point)


@part("ranges", "lsq")
class LSQ(LeastSquares):
    """Step sizes that are learned with the student, from the least squared error on.

    Source: LSQ (Esser et al., ICLR 2020) for weights and behind ReLU, LSQ+ (Bhalgat et al., CVPR
    Workshops 2020) for the offset of activations of both signs.
    """

    lr_multiplier: float = 1.0
    """Learning rate of step sizes, as a multiple of the student's.

    Step sizes are learned in units of what they are at first, so that with Adam a rate of 1e-3 is
    a thousandth of each a step."""

    def __post_init__(self) -> None:
        require_range("lr_multiplier", self.lr_multiplier, 0, open_minimum=True)

    def weight_quantizer(
        self, bits: int, weight: Tensor, settings: QuantizerSettings
    ) -> WeightQuantizer:
        """Return a symmetric quantizer with a learned step size per output channel."""
        quantizer = LearnedWeightQuantizer(bits, weight, settings.gradient)
        quantizer.lr_multiplier = self.lr_multiplier
        return quantizer

    def activation_quantizer(self, bits: int, settings: QuantizerSettings) -> ActivationQuantizer:
        """Return a quantizer with a learned step size and offset."""
        quantizer = self._as_set(LearnedActivationQuantizer, bits, settings)
        quantizer.lr_multiplier = self.lr_multiplier
        return quantizer


LEARNED = (LearnedWeightQuantizer, LearnedActivationQuantizer)


def step_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the learned step sizes and offsets of ``network``, in registration order."""
    quantizers = [module for module in network.modules() if isinstance(module, LEARNED)]
    return [parameter for quantizer in quantizers for parameter in quantizer.parameters()]


def parameter_groups(student: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters of ``student`` as groups for an optimizer.

    Step sizes are a group of their own, without weight decay, which would pull their ranges
    shut. A student that learns none is one group, in the order of ``student.parameters()``.

    Args:
        student: A converted network.
        weight_decay: Of all other parameters.
    """
    steps = step_parameters(student)
    learned = {id(parameter) for parameter in steps}
    others = [parameter for parameter in student.parameters() if id(parameter) not in learned]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": weight_decay}]
    if steps:
        multiple = next(m.lr_multiplier for m in student.modules() if isinstance(m, LEARNED))
        groups.append({"params": steps, "weight_decay": 0.0, LR_MULTIPLIER: multiple})
    return groups
