"""The scale of inputs that are no pictures, learned from the network's BatchNorms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hast_lightning.core.network import slowed
from hast_lightning.core.source import HELD_OUT_SEED

SAMPLES, STEPS, RATE = 32, 150, 0.1
"""Samples, steps of Adam, and its rate in standard deviations: ours."""


def statistics_mismatch(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return how far the statistics of ``inputs`` are from those of the network's BatchNorms.

    ``mean over layers of mean over channels of [(mu - m)^2 / v + log(var / v)^2]`` with a layer's
    running mean and variance ``m`` and ``v``. Relative, so that it has a slope however wrong the
    scale of the inputs is.

    Args:
        network: In evaluation mode.
        inputs: (N, C, H, W).

    Returns:
        A scalar; 0 of a network without running statistics.
    """
    found: list[Tensor] = []

    def compare(layer: nn.Module, values: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        if layer.running_mean is None or layer.running_var is None:
            return
        var, mean = torch.var_mean(values[0], (0, 2, 3), correction=0)
        expected = layer.running_var + layer.eps
        distance = (mean - layer.running_mean).square() / expected
        found.append((distance + ((var + layer.eps) / expected).log().square()).mean())

    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(compare) for layer in layers]
    try:
        network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).mean() if found else torch.zeros(())


def input_statistics(
    network: nn.Module, input_shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return mean and deviation of each coefficient, learned without data.

    Noise, its mean and its scale are trained until the network's BatchNorms meet the statistics
    that they expect; what the noise has become then says them. The random numbers of a run are
    left alone. The procedure is ours.

    Args:
        network: In evaluation mode, on the CPU.
        input_shape: (channels, frames, coefficients).

    Returns:
        Two tensors (channels, 1, coefficients); none of a network without BatchNorm2d.
    """
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    white = torch.randn(SAMPLES, *input_shape, generator=generator)
    values = slowed(white).requires_grad_()
    shift, log_scale = (
        torch.zeros(input_shape[0], 1, input_shape[2], requires_grad=True) for _ in range(2)
    )
    learned = [values, shift, log_scale]
    optimizer = torch.optim.Adam(learned, lr=RATE)
    for _ in range(STEPS):
        loss = statistics_mismatch(network, log_scale.exp() * (values + shift))
        if not loss.requires_grad:
            return None, None
        # Of the inputs alone: the network's own gradients stay as they are.
        for tensor, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            tensor.grad = gradient
        optimizer.step()
    inputs = (log_scale.exp() * (values + shift)).detach()
    std, mean = torch.std_mean(inputs, (0, 2), keepdim=True)
    return mean[0], std[0].clamp_min(1e-6)
