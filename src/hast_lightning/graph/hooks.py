"""Hooks of modules: code that runs beside a network's own, and that no graph of layers has."""

from __future__ import annotations

from torch import nn

_FORWARD = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


def hooked_modules(network: nn.Module) -> list[str]:
    """Return the dotted names of modules with hooks, forward or backward; "" is the network."""
    return [
        name
        for name, module in network.named_modules()
        if any(getattr(module, hooks) for hooks in (*_FORWARD, *_BACKWARD))
    ]


def remove_hooks(network: nn.Module) -> nn.Module:
    """Return ``network``, changed in place, without hooks, forward and backward."""
    for module in network.modules():
        for hooks in (*_FORWARD, *_BACKWARD):
            getattr(module, hooks).clear()
    return network
