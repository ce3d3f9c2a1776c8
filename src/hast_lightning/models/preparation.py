"""From whatever a provider gives to a network that can be traced, taken apart and quantized."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from hast_lightning.errors import ModelError
from hast_lightning.graph.functional_layers import functions_to_layers
from hast_lightning.graph.sized_tracing import trace_sized
from hast_lightning.graph.tracing import innermost_place, trace

_IMAGES = 2
_TOLERANCE = 1e-3


def prepare(
    network: nn.Module, input_shape: tuple[int, int, int], name: str
) -> tuple[nn.Module, int]:
    """Return the network in layers of ``torch.nn``, and its number of classes.

    A network that torch.fx follows and that has no weights outside of such layers is given
    back as it is. Any other becomes its graph, for images of this one size. Either way its
    graph gives the same logits as its own code, or it is refused.

    Args:
        network: in evaluation mode.
        input_shape: (C, H, W).
        name: the network's name, for messages.

    Raises:
        ModelError: it does not take such images, puts out no logits, cannot be traced, or
            does something else when it is traced.
    """
    images = torch.randn(_IMAGES, *input_shape, generator=torch.Generator().manual_seed(0))
    with _measured_batch_norms(network) as dimensions:
        expected = _logits(network, images, name)
    plain = _with_plain_batch_norms(_without_parametrizations(network), dimensions)
    # A copy, because some networks keep intermediate values, and so traces of the tracing.
    graph_module, sized = _trace(copy.deepcopy(plain), input_shape)
    changed = functions_to_layers(graph_module, images)
    if sized or changed or plain is not network:
        graph_module.eval()
        _require_same(expected, _logits(graph_module, images, name), name)
        return graph_module, expected.shape[1]
    _require_same(expected, _logits(graph_module, images, name), name)
    return network, expected.shape[1]


def _trace(network: nn.Module, input_shape: tuple[int, int, int]) -> tuple[fx.GraphModule, bool]:
    """The graph, and whether it is that of this input size alone."""
    try:
        return trace(network), False
    except ModelError:
        return trace_sized(network, input_shape), True


@torch.no_grad()
def _logits(network: nn.Module, images: Tensor, name: str) -> Tensor:
    shape = "x".join(map(str, images.shape[1:]))
    try:
        # Some networks normalize their input in place.
        output = network(images.clone())
    except Exception as error:  # whatever a network's own code raises
        reason = (str(error) or repr(error)).splitlines()[0]
        place = innermost_place(error.__traceback__)
        raise ModelError(
            f"the network {name} fails on images of {shape} (model.input_size), at {place}: "
            f"{reason}"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
        given = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else None
        raise ModelError(
            f"the network {name} returns {given or 'a ' + type(output).__name__} for "
            f"{len(images)} images of {shape}; expected logits (images, classes)"
        )
    return output


def _without_parametrizations(network: nn.Module) -> nn.Module:
    """The network, or a copy in which parametrized weights (weight norm) are plain ones."""
    if not any(parametrize.is_parametrized(module) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            parametrizations = module.parametrizations
            assert isinstance(parametrizations, nn.ModuleDict)
            for tensor in list(parametrizations):
                parametrize.remove_parametrizations(module, tensor)
    return network


@contextmanager
def _measured_batch_norms(network: nn.Module) -> Iterator[dict[str, int]]:
    """Dimensions of what the synchronized BatchNorms take in, by name: they take any."""
    found: dict[str, int] = {}
    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.SyncBatchNorm):

            def measure(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                found[name] = inputs[0].dim()

            hooks.append(layer.register_forward_pre_hook(measure))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _with_plain_batch_norms(network: nn.Module, dimensions: Mapping[str, int]) -> nn.Module:
    """The network, or a copy without the BatchNorms that several devices trained together.

    In evaluation mode they compute what plain ones do.
    """
    if not dimensions:
        return network
    network = copy.deepcopy(network)
    for name, count in dimensions.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.SyncBatchNorm)
        plain = (nn.BatchNorm2d if count == 4 else nn.BatchNorm1d)(
            layer.num_features,
            layer.eps,
            layer.momentum,
            layer.affine,
            layer.track_running_stats,
        )
        plain.load_state_dict(layer.state_dict())
        network.set_submodule(name, plain.eval())
    return network


def _require_same(expected: Tensor, actual: Tensor, name: str) -> None:
    scale = float(expected.abs().max())
    if not torch.allclose(expected, actual, _TOLERANCE, _TOLERANCE * scale, equal_nan=True):
        raise ModelError(
            f"the network {name} gives other logits when torch.fx has traced it: its Python code "
            "depends on more than its input (randomness, or the type of what it is given)"
        )
