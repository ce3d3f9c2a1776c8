"""Networks as graphs (torch.fx): intermediate values, BatchNorm inputs, BatchNorm folding.

A graph module shares its layers with the network that it was traced from, unless a function
says that it copies.
"""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from hast_lightning.errors import ModelError
from hast_lightning.graph.operations import layer_of

_TORCH_FOLDER = Path(torch.__file__).parent
_OWN_FOLDER = Path(__file__).parent

Convolution = TypeVar("Convolution", bound=nn.Conv2d)


class PlaceTracer(fx.Tracer):
    """Remembers in which module tracing failed."""

    failed_in: str | None = None

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace a call of a module, and keep its name where that fails."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = self.path_of_module(m)
            raise


def trace(network: nn.Module) -> fx.GraphModule:
    """Return the graph of ``network``, whose layers it shares.

    Branches on ``training`` are decided as the network's mode is now, so put it in evaluation
    mode first. Layers of ``torch.nn`` stay whole; everything around them is taken apart.

    Raises:
        ModelError: the network's Python code depends on values that only exist when it runs.
    """
    return trace_with(PlaceTracer(), network)


def trace_with(tracer: PlaceTracer, network: nn.Module) -> fx.GraphModule:
    """Trace as :func:`trace`, with a tracer that may know more than the network's code says."""
    if isinstance(network, fx.GraphModule):
        return fx.GraphModule(network, copy.deepcopy(network.graph))
    name = type(network).__name__
    try:
        graph = tracer.trace(network)
        # Some networks keep what they compute, and so proxies of an earlier tracing.
        graph.lint()
        return fx.GraphModule(tracer.root, graph, name)
    except Exception as error:  # whatever the network's own code raises when it meets proxies
        reason = (str(error) or repr(error)).splitlines()[0]
        module = f" in module {tracer.failed_in!r}" if tracer.failed_in else ""
        place = innermost_place(error.__traceback__)
        raise ModelError(
            f"the network {name} cannot be traced by torch.fx{module} at {place}: {reason}"
        ) from error


def innermost_place(stack: TracebackType | None) -> str:
    """Return file, line and code of the deepest frame outside of PyTorch and this package."""
    frames = traceback.extract_tb(stack)
    own = [
        frame
        for frame in frames
        if not {_TORCH_FOLDER, _OWN_FOLDER} & set(Path(frame.filename).parents)
    ]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} ({frame.line})"


def expose(graph_module: fx.GraphModule, nodes: Sequence[str]) -> fx.GraphModule:
    """Return a graph module that puts out intermediate values beside the output.

    Args:
        graph_module: left as it is; layers, parameters and buffers are shared with it.
        nodes: names of nodes, in the order in which their values are wanted.

    Returns:
        Its forward returns ``(output, [value of each named node])``.

    Raises:
        ModelError: there is no node of such a name.
    """
    graph = copy.deepcopy(graph_module.graph)
    by_name = {node.name: node for node in graph.nodes}
    for name in nodes:
        if name not in by_name:
            raise ModelError(
                f"the network's graph has no node {name!r}; it has, for example, "
                f"{', '.join(list(by_name)[-4:])}"
            )
    values = [_lasting_value(by_name[name], graph_module) for name in nodes]
    output = graph.output_node()
    # The graph rewrites lists of nodes into its own immutable kind.
    output.args = ((output.args[0], values),)
    graph.lint()
    exposed = fx.GraphModule(graph_module, graph, type(graph_module).__name__)
    # Share the containers too: a buffer of a container that moves to a device is replaced there.
    exposed._modules.update(graph_module._modules)
    return exposed


def _lasting_value(node: fx.Node, graph_module: fx.GraphModule) -> fx.Node:
    """The node, or a copy of its value where a later operation overwrites it in place."""
    if not any(_overwrites(user, node, graph_module) for user in node.users):
        return node
    with node.graph.inserting_after(node):
        return node.graph.call_method("clone", (node,))


def _overwrites(user: fx.Node, node: fx.Node, graph_module: fx.GraphModule) -> bool:
    if not user.args or user.args[0] is not node:
        return False
    if user.op == "call_module":
        layer = graph_module.get_submodule(str(user.target))
        return bool(getattr(layer, "inplace", False))
    # Methods and functions: add_, relu_, iadd, and relu(..., inplace=True).
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    augmented = getattr(user.target, "__module__", "") == "_operator" and name.startswith("i")
    trailing = name.endswith("_") and not name.endswith("__")
    return trailing or augmented or bool(user.kwargs.get("inplace", False))


def batch_norm_inputs(graph_module: fx.GraphModule) -> list[tuple[str, str]]:
    """List the inputs of the BatchNorm layers, in order of execution.

    Layers that keep no running statistics are left out: a batch has nothing to match there.

    Returns:
        For each call of a ``BatchNorm2d``, the name of the node that feeds it and the dotted
        name of the layer.
    """
    return [
        (node.all_input_nodes[0].name, str(node.target))
        for node in graph_module.graph.nodes
        if isinstance(layer := layer_of(node, graph_module), nn.BatchNorm2d)
        and layer.running_mean is not None
    ]


def fold_batch_norms(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy whose BatchNorms are part of the convolutions before them.

    Evaluation-mode BatchNorm is an affine map per channel, so convolution and BatchNorm
    together are one convolution (Jacob et al., CVPR 2018, section 3.2). Folded where the
    convolution feeds that BatchNorm alone and both are called once; the BatchNorm becomes an
    identity, so that the names of nodes stay valid.

    Args:
        graph_module: left as it is.
    """
    folded = copy.deepcopy(graph_module)
    for convolution, name, normalization in foldable_batch_norms(folded, nn.Conv2d):
        # A reparametrized weight (weight normalization) is no parameter and would be overwritten.
        if isinstance(convolution.weight, nn.Parameter):
            _fold(convolution, normalization)
            folded.set_submodule(name, nn.Identity())
    return folded.eval()


def foldable_batch_norms(
    graph_module: fx.GraphModule, kind: type[Convolution]
) -> Iterator[tuple[Convolution, str, nn.BatchNorm2d]]:
    """Yield convolutions whose only follower is a BatchNorm, both called once.

    Args:
        graph_module: Its BatchNorms may be replaced on the way.
        kind: The exact class of the convolutions.

    Yields:
        The convolution, and the dotted name and the layer of the BatchNorm behind it.
    """
    calls = Counter(
        str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"
    )
    for node in graph_module.graph.nodes:
        normalization = layer_of(node, graph_module)
        if not isinstance(normalization, nn.BatchNorm2d) or normalization.running_var is None:
            continue
        source = node.all_input_nodes[0]
        convolution = layer_of(source, graph_module)
        alone = len(source.users) == 1 and calls[str(source.target)] == calls[str(node.target)] == 1
        if isinstance(convolution, kind) and type(convolution) is kind and alone:
            yield convolution, str(node.target), normalization


@torch.no_grad()
def _fold(convolution: nn.Conv2d, normalization: nn.BatchNorm2d) -> None:
    """Give ``convolution`` the weights and the bias of the two layers together."""
    scale, shift = batch_norm_affine(normalization)
    weight, bias = convolution.weight, convolution.bias
    if bias is not None:
        shift = shift + scale * bias.double()
    trains = weight.requires_grad
    folded = weight.double() * scale[:, None, None, None]
    convolution.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=trains)
    convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=trains)


@torch.no_grad()
def batch_norm_affine(normalization: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift per channel (float64) of a BatchNorm in evaluation mode."""
    mean, variance = normalization.running_mean, normalization.running_var
    assert mean is not None
    assert variance is not None
    # Double precision: rounding the product twice would move the output more than folding does.
    scale = (variance.double() + normalization.eps).rsqrt()
    if normalization.weight is not None:
        scale = scale * normalization.weight.double()
    shift = -mean.double() * scale
    if normalization.bias is not None:
        shift = shift + normalization.bias.double()
    return scale, shift
