"""Weights that a network computes anew at every pass, made plain parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

_REMOVALS: tuple[tuple[type, Callable[[nn.Module, str], object]], ...] = (
    (WeightNorm, remove_weight_norm),
    (SpectralNorm, remove_spectral_norm),
    (prune.BasePruningMethod, prune.remove),
)
"""The ways to compute weights that are older than parametrizations: hooks before a pass."""


def computes_weights(network: nn.Module) -> bool:
    """Return whether some weight is parametrized, normalized by a hook, or pruned by a mask."""
    return any(parametrize.is_parametrized(each) or _hooks(each) for each in network.modules())


def make_weights_plain(network: nn.Module) -> None:
    """Have weights be parameters of the values that they have in evaluation mode.

    Args:
        network: Changed in place.
    """
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            parametrizations = module.parametrizations
            assert isinstance(parametrizations, nn.ModuleDict)
            for tensor in list(parametrizations):
                parametrize.remove_parametrizations(module, tensor)
        for tensor, remove in _hooks(module):
            remove(module, tensor)


def _hooks(module: nn.Module) -> list[tuple[str, Callable[[nn.Module, str], object]]]:
    """Return names of the tensors that hooks compute, and what makes each of them plain."""
    return [
        (str(getattr(hook, "_tensor_name", None) or vars(hook)["name"]), remove)
        for hook in module._forward_pre_hooks.values()
        for kind, remove in _REMOVALS
        if isinstance(hook, kind)
    ]
