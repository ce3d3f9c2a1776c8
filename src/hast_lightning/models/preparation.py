"""From whatever a provider gives to a network that can be traced, taken apart and quantized."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, fx, nn

from hast_lightning.errors import ModelError
from hast_lightning.graph.attention import (
    has_fused_modules,
    write_out_functions,
    write_out_modules,
)
from hast_lightning.graph.functional_layers import functions_to_layers
from hast_lightning.graph.heads import cut_head, restore_head
from hast_lightning.graph.hooks import hooked_modules, remove_hooks
from hast_lightning.graph.in_place import out_of_place, requires_copies
from hast_lightning.graph.operations import BATCH_NORMS
from hast_lightning.graph.outputs import (
    MAPS_DIMENSIONS,
    join_outputs,
    mark_maps,
    puts_out_several,
)
from hast_lightning.graph.sized_tracing import trace_sized
from hast_lightning.graph.tracing import trace
from hast_lightning.models.plain_weights import computes_weights, make_weights_plain
from hast_lightning.models.steadiness import (
    differ,
    outputs_of,
    replaced_forwards,
    steady_outputs,
)

_IMAGES = 2
FROZEN_BATCH_NORM = "FrozenBatchNorm2d"
_STATISTICS = {"weight", "bias", "running_mean", "running_var"}


def prepare(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    name: str,
    images: Tensor | None = None,
) -> tuple[nn.Module, int]:
    """Return the network in layers of ``torch.nn``, and its number of classes.

    A network that torch.fx follows and that has no weights outside of such layers is given
    back as it is. Any other becomes its graph, for images of this one size. Either way its
    graph gives the same outputs as its own code, or it is refused. A network that puts out
    probabilities becomes one that puts out their logits, and remembers it
    (:func:`hast_lightning.graph.heads.head_of`). One with several outputs joins them.

    Args:
        network: in evaluation mode; left as it is.
        input_shape: (C, H, W).
        name: the network's name, for messages.
        images: (N, C, H, W), two or more, that it is tried on; none: noise.

    Raises:
        ModelError: it does not take such images, puts out no logits, answers an image in several
            ways, cannot be traced, or does something else when it is traced.
    """
    if images is None:
        images = torch.randn(_IMAGES, *input_shape, generator=torch.Generator().manual_seed(0))
    with _measured_batch_norms(network) as dimensions:
        expected = steady_outputs(network, images, name)
    plain, hooks_count = _plain(network, dimensions, images, expected, name)
    # A copy, because some networks keep intermediate values, and so traces of the tracing.
    graph_module, sized = _trace(copy.deepcopy(plain), input_shape, with_hooks=hooks_count)
    changed = join_outputs(graph_module)
    changed |= write_out_functions(graph_module, images)
    changed |= functions_to_layers(graph_module, images)
    changed |= _without_overwriting(graph_module, images, expected, name)
    graph_module.eval()
    whole: nn.Module = graph_module
    if puts_out_several(graph_module):
        changed = True
    elif expected.dim() == MAPS_DIMENSIONS:
        mark_maps(graph_module)
        changed = True
    elif cut_head(graph_module, images, expected):
        changed, whole = True, restore_head(copy.deepcopy(graph_module))
    _require_same(expected, outputs_of(whole, images, name), name)
    strange = hooks_count or replaced_forwards(plain)
    if sized or changed or strange or plain is not network:
        return graph_module, expected.shape[1]
    return network, expected.shape[1]


def _plain(
    network: nn.Module,
    dimensions: Mapping[str, int],
    images: Tensor,
    expected: Tensor,
    name: str,
) -> tuple[nn.Module, bool]:
    """Return the network, or a copy without what only its own code knows how to use.

    Returns:
        The network, and whether its hooks are a part of what it computes.
    """
    if computes_weights(network):
        network = copy.deepcopy(network)
        make_weights_plain(network)
    network = _with_plain_batch_norms(network, dimensions)
    network = _without_frozen_batch_norms(network)
    if has_fused_modules(network):
        network = write_out_modules(network)
    if not hooked_modules(network):
        return network, False
    bare = remove_hooks(copy.deepcopy(network))
    try:
        hooks_count = differ(expected, outputs_of(bare, images, name))
    except ModelError:  # it needs them
        hooks_count = True
    return (network, True) if hooks_count else (bare, False)


def _trace(
    network: nn.Module, input_shape: tuple[int, int, int], *, with_hooks: bool
) -> tuple[fx.GraphModule, bool]:
    """Return the graph, and whether it is that of this input size alone.

    Args:
        network: loses its hooks, which are in the graph then.
        input_shape: (C, H, W).
        with_hooks: whether they count.
    """
    try:
        try:
            found = trace(network, with_hooks=with_hooks), False
        except ModelError:
            found = trace_sized(network, input_shape, with_hooks=with_hooks), True
    except ModelError as error:
        raise ModelError(f"{error}{_strange_code(network)}") from error
    if with_hooks:
        remove_hooks(found[0])
    return found


def _strange_code(network: nn.Module) -> str:
    """Return what to say of code that was put into a network from outside; mostly nothing."""
    hooked, replaced = hooked_modules(network), replaced_forwards(network)
    said = [
        f"{what} {', '.join(repr(name) for name in names[:3])}"
        for what, names in (("hooks of", hooked), ("another forward than its class in", replaced))
        if names
    ]
    return f" (the network has {' and '.join(said)})" if said else ""


def _without_overwriting(
    graph_module: fx.GraphModule, images: Tensor, expected: Tensor, name: str
) -> bool:
    """Have operations leave their inputs, where gradients need what they overwrite.

    Returns:
        Whether anything was changed.

    Raises:
        ModelError: out of place they compute something else.
    """
    if not requires_copies(graph_module, images):
        return False
    out_of_place(graph_module)
    failed = differ(expected, outputs_of(graph_module, images, name))
    if failed or requires_copies(graph_module, images):
        raise ModelError(
            f"the network {name} overwrites values in place that its gradients need, and no "
            "graph without that computes the same: use operations that return a new tensor"
        )
    return True


@contextmanager
def _measured_batch_norms(network: nn.Module) -> Iterator[dict[str, int]]:
    """Dimensions of what the synchronized BatchNorms take in, by name: they take any."""
    found: dict[str, int] = {}

    def measure(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[name] = inputs[0].dim()

    hooks = [
        layer.register_forward_pre_hook(partial(measure, name))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.SyncBatchNorm)
    ]
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
        plain = BATCH_NORMS[max(count - 3, 0)](
            layer.num_features,
            layer.eps,
            layer.momentum,
            layer.affine,
            layer.track_running_stats,
        )
        plain.load_state_dict(layer.state_dict())
        network.set_submodule(name, plain.eval())
    return network


def _without_frozen_batch_norms(network: nn.Module) -> nn.Module:
    """The network, or a copy with plain BatchNorms where detectors have frozen ones.

    Those of torchvision and Detectron2 compute the same and are no layers of torch, so that nobody
    would find their statistics.
    """
    frozen = {
        name: layer
        for name, layer in network.named_modules()
        if type(layer).__name__ == FROZEN_BATCH_NORM and layer.state_dict().keys() >= _STATISTICS
    }
    if not frozen:
        return network
    network = copy.deepcopy(network)
    for name, layer in frozen.items():
        state = {key: layer.state_dict()[key] for key in _STATISTICS}
        plain = nn.BatchNorm2d(len(state["weight"]), eps=float(getattr(layer, "eps", 1e-5)))
        plain.load_state_dict(state, strict=False)
        network.set_submodule(name, plain.eval())
    return network


def _require_same(expected: Tensor, actual: Tensor, name: str) -> None:
    if differ(expected, actual):
        raise ModelError(
            f"the network {name} gives other logits when torch.fx has traced it: its Python code "
            "depends on more than its input (the type of what it is given, for example)"
        )
