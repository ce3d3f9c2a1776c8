"""GPTQ: each weight is rounded to nearest, and those behind it make up for the error.

For a layer ``y = W x`` with inputs ``X`` (columns d, samples n) the squared error of the outputs is
quadratic in the weights, with ``H = 2 X X^T`` for every row of ``W``. Columns are rounded from left
to right: with ``U`` the upper Cholesky factor of ``H^-1`` (``H^-1 = U^T U``),

    q_j = round(w_j)    e = (w_j - q_j) / U_jj    w_k -= e U_jk for k > j

Source: GPTQ (Frantar et al., ICLR 2023), with damping of 1 % of the mean diagonal and its lazy
updates of blocks. Ours: a group's scale is that of the weights as they were, not of what is left of
them when the group is reached.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.core.part import part
from hast_lightning.errors import ModelError
from hast_lightning.quantization.axes import QuantizerSettings, Ranges, Rounding
from hast_lightning.quantization.fake_quant import QuantizedLayer, WeightQuantizer
from hast_lightning.quantization.ranges import AffineParameters
from hast_lightning.quantization.rounding import quantize_dequantize

SOLVED = (nn.Linear, nn.Conv2d)
"""Layers that are products of a matrix with rows of their input."""


class FixedGridQuantizer(WeightQuantizer):
    """Rounds weights to nearest on a grid that stays that of the weights which it was made for.

    So weights that a stage has put on the grid stay where they are.

    Args:
        weight: What it is for, (out_channels, ...).
        ranges: Finds the scale and zero point.
    """

    finds_anew = False

    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, ranges: WeightQuantizer) -> None:
        super().__init__(
            ranges.bits,
            ranges.include_zero,
            symmetric=ranges.grid.symmetric,
            find=ranges.find,
            gradient=ranges.gradient,
            group_size=ranges.group_size,
        )
        for name, value in zip(("scale", "zero_point"), self._found(weight), strict=True):
            self.register_buffer(name, value.detach().clone())

    def _found(self, weight: Tensor) -> AffineParameters:
        if self.group_size is not None:
            return super().group_parameters(weight)
        return super().parameters_of(weight)

    @torch.no_grad()
    def change_bits(self, bits: int, weight: Tensor) -> None:
        """Begin anew with other bits for ``weight`` as it is."""
        self.set_bits(bits)
        for own, value in zip((self.scale, self.zero_point), self._found(weight), strict=True):
            own.copy_(value)

    def group_parameters(self, weight: Tensor) -> AffineParameters:
        """Return scale and zero point of each group; the weight itself does not matter."""
        return AffineParameters(self.scale, self.zero_point)

    def parameters_of(self, weight: Tensor) -> AffineParameters:
        """Return scale and zero point; the weight itself does not matter."""
        found = AffineParameters(self.scale, self.zero_point)
        return found if self.group_size is None else self.spread(found, weight)


@part("rounding", "fixed_grid")
class FixedGrid(Rounding):
    """Weights are rounded to nearest on a grid that stays; a stage ``gptq`` puts them on it.

    Source: GPTQ (Frantar et al., ICLR 2023).
    """

    def weight_quantizer(
        self, ranges: Ranges, bits: int, weight: Tensor, settings: QuantizerSettings
    ) -> WeightQuantizer:
        """Return a quantizer on the grid of ``weight`` as it is now."""
        return FixedGridQuantizer(weight, ranges.weight_quantizer(bits, weight, settings))


def input_rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return what each row of a layer's weights is multiplied with, (groups, n, d), float32.

    Args:
        layer: Linear, or a convolution in two dimensions, whose groups see channels of their own.
        inputs: What it takes in, (..., in_features) or (N, C, H, W).
    """
    if isinstance(layer, nn.Conv2d):
        padded = F.pad(inputs.float(), layer._reversed_padding_repeated_twice, _mode(layer))
        rows = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
        grouped = rows.view(len(rows), layer.groups, -1, rows.shape[-1])
        return grouped.permute(1, 0, 3, 2).flatten(1, 2)
    return inputs.float().flatten(0, -2).unsqueeze(0)


def _mode(layer: nn.Conv2d) -> str:
    return "constant" if layer.padding_mode == "zeros" else layer.padding_mode


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return ``U`` (d, d), upper triangular with ``U^T U = H^-1``, and which inputs are never met.

    Args:
        hessian: ``H`` (d, d); a small share of its mean diagonal is added to it.
        damping: That share.

    Raises:
        ModelError: ``H`` is no positive definite matrix all the same.
    """
    dead = hessian.diagonal() == 0
    # In double precision: the inputs of one token differ little from those of another.
    damped = hessian.double() + torch.diag(dead.double())
    damped = damped + damping * hessian.diagonal().double().mean() * torch.eye(len(hessian)).to(
        damped
    )
    lower, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed) or not bool(damped.isfinite().all()):
        raise ModelError(
            "gptq: the inputs of a layer are NaN, or one is a sum of others: raise damping"
        )
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper.float(), dead


def solve(
    weight: Tensor, hessian: Tensor, grid: AffineParameters, bits: int, damping: float, block: int
) -> Tensor:
    """Return weights on their grid, (rows, d), of which each makes up for the errors before it.

    Args:
        weight: ``W`` (rows, d).
        hessian: ``H`` (d, d).
        grid: Scale and zero point, (rows, 1) or (rows, d).
        bits: 2 to 8.
        damping: As of :func:`inverse_factor`.
        block: Columns that are finished before the others are told; changes nothing but the time.
    """
    upper, dead = inverse_factor(hessian, damping)
    left, found = weight.float().clone(), torch.empty_like(weight, dtype=torch.float32)
    # What an input that is always zero is multiplied with does not matter.
    left[:, dead] = 0
    scale, zero_point = (each.expand(weight.shape) for each in grid)
    for start in range(0, weight.shape[1], block):
        end = min(start + block, weight.shape[1])
        errors = torch.empty_like(left[:, start:end])
        for j in range(start, end):
            one = slice(j, j + 1)
            found[:, one] = quantize_dequantize(
                left[:, one], scale[:, one], zero_point[:, one], bits
            )
            error = (left[:, one] - found[:, one]) / upper[j, j]
            left[:, j:end] -= error * upper[j, j:end]
            errors[:, j - start] = error[:, 0]
        left[:, end:] -= errors @ upper[start:end, end:]
    return found


@torch.no_grad()
def round_layer(layer: QuantizedLayer, hessians: Tensor, damping: float, block: int) -> None:
    """Put a layer's weights on the grid of its quantizer.

    Args:
        layer: Linear, or a convolution in two dimensions.
        hessians: (groups, d, d).
        damping: As of :func:`inverse_factor`.
        block: As of :func:`solve`.
    """
    rows = layer.weight.flatten(1)
    quantizer = layer.weight_quantizer
    scale, zero_point = (each.flatten(1) for each in quantizer.parameters_of(layer.weight))
    parts = zip(
        *(torch.chunk(each, len(hessians)) for each in (rows, scale, zero_point)),
        hessians,
        strict=True,
    )
    with torch.autocast(rows.device.type, enabled=False):
        found = [
            solve(part, hessian, AffineParameters(s, z), quantizer.bits, damping, block)
            for part, s, z, hessian in parts
        ]
    layer.weight.copy_(torch.cat(found).view_as(layer.weight))
