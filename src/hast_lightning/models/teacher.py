"""The full-precision teacher: frozen, always in evaluation mode, measured at its BatchNorms."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hast_lightning.errors import ModelError
from hast_lightning.models.graph import batch_norm_inputs, expose, fold_batch_norms, trace


class BatchNormStatistics(NamedTuple):
    """What one BatchNorm layer meets in a batch, and what it met in the teacher's training.

    Four tensors of shape (channels,). ``mean`` and ``var`` are the batch's, over images, rows
    and columns, the variance biased; the running ones are the layer's own.
    """

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor


class _ChannelStatistics(torch.autograd.Function):
    """Mean and biased variance per channel, with a backward of a single pass.

    With M values a channel, ``d mean / dx = 1 / M`` and ``d var / dx = 2 (x - mean) / M``, so
    that the gradient is affine in x: ``x * a_c + b_c``. Autograd's own takes several passes over
    an activation, which matters at every BatchNorm of every synthesis step.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        mean, var = _mean_and_variance(wide)
        ctx.save_for_backward(features, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        features, mean = ctx.saved_tensors
        grad_mean, grad_var = gradients
        count = features.numel() // features.shape[1]
        slope = grad_var * (2.0 / count)
        offset = grad_mean / count - slope * mean
        gradient = torch.addcmul(_per_channel(offset), features, _per_channel(slope))
        return gradient.to(features.dtype)


def _mean_and_variance(features: Tensor) -> tuple[Tensor, Tensor]:
    if features.device.type != "cpu":
        var, mean = torch.var_mean(features, (0, 2, 3), correction=0)
        return mean, var
    # var_mean is not vectorized there: two passes over the data take about a sixth of its time.
    mean = features.mean((0, 2, 3))
    centered = features - _per_channel(mean)
    return mean, centered.square_().mean((0, 2, 3))


def _per_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None]


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, over images, rows and columns.

    Computed in float32 whatever precision the network runs in (float64 stays float64).

    Args:
        features: shape (N, C, H, W).

    Returns:
        Two tensors of shape (C,), differentiable once in ``features``.
    """
    mean, var = _ChannelStatistics.apply(features)
    return mean, var


def require_batch_norms(graph_module: GraphModule, name: str) -> list[tuple[str, str]]:
    """The BatchNorms of a network, as :func:`batch_norm_inputs` gives them; at least one.

    Raises:
        ModelError: there is none; the message calls the network ``name``.
    """
    inputs = batch_norm_inputs(graph_module)
    if not inputs:
        raise ModelError(
            f"the network {name} has no BatchNorm2d with running statistics, which synthetic "
            "images are matched to"
        )
    return inputs


def batch_norms_are_new(graph_module: GraphModule) -> bool:
    """Whether no BatchNorm has ever met an image: mean 0 and variance 1 in every channel.

    Such a network was never trained, or its weights were not loaded; images that are matched to
    these statistics say nothing about its data.
    """
    layers = [graph_module.get_submodule(name) for _, name in batch_norm_inputs(graph_module)]
    means = [layer.running_mean for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    variances = [layer.running_var for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    return all(mean is not None and not mean.any() for mean in means) and all(
        var is not None and bool((var == 1).all()) for var in variances
    )


class FrozenTeacher(nn.Module):
    """A copy of a pretrained network that never changes.

    Its parameters take no gradient and :meth:`train` leaves it in evaluation mode; gradients
    still flow through it to the images.

    Args:
        network: left as it is.
        taps: names of the graph's nodes whose values :meth:`features` returns.

    Raises:
        ModelError: the network cannot be traced, has no BatchNorm with running statistics, or
            has no node of such a name.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        graph_module = trace(copy.deepcopy(network).eval().requires_grad_(False))
        inputs = require_batch_norms(graph_module, type(network).__name__)
        self._batch_norms = [layer for _, layer in inputs]
        self._measured = expose(graph_module, [node for node, _ in inputs])
        self._folded = expose(fold_batch_norms(graph_module), taps)
        self.eval()

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in evaluation mode, whatever ``mode`` asks for."""
        return super().train(False)

    def compile_passes(self) -> None:
        """Have torch.compile translate both passes, each when it is first used."""
        self._measured.compile()
        self._folded.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        logits, _ = self.features(images)
        return logits

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (N, classes) and the value at each tap, as the block gives it out."""
        logits, values = self._folded(images)
        return logits, values

    def statistics(self, images: Tensor) -> tuple[Tensor, list[BatchNormStatistics]]:
        """Logits (N, classes) and the statistics at each BatchNorm, in order of execution."""
        logits, values = self._measured(images)
        layers = zip(values, self._batch_norms, strict=True)
        return logits, [self._compare(value, layer) for value, layer in layers]

    def _compare(self, features: Tensor, layer_name: str) -> BatchNormStatistics:
        layer = self._measured.get_submodule(layer_name)
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        return BatchNormStatistics(
            *channel_statistics(features), layer.running_mean, layer.running_var
        )
