"""Networks as graphs (torch.fx): intermediate values, BatchNorm inputs, BatchNorm folding.

A graph module shares its layers with the network that it was traced from, unless a function
says that it copies.
"""

from __future__ import annotations

import copy
import inspect
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from hast_lightning.errors import ModelError, first_line
from hast_lightning.graph.heads import copy_head
from hast_lightning.graph.in_place import is_overwritten
from hast_lightning.graph.operations import (
    BATCH_NORMS,
    CONVOLUTION_LAYERS,
    IDENTITIES,
    TRANSPOSED_LAYERS,
    BatchNorm,
    layer_of,
)
from hast_lightning.graph.weights import output_first, swapped

_TORCH_FOLDER = Path(torch.__file__).parent
_OWN_FOLDER = Path(__file__).parent

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

SMALLEST_FACTOR = 1e-20
"""A channel that a BatchNorm multiplies by less puts out nothing but the BatchNorm's bias."""
_FOLDED = (*CONVOLUTION_LAYERS, *TRANSPOSED_LAYERS)


class PlaceTracer(fx.Tracer):
    """Follows ``network(images)``, and remembers in which module that failed.

    Arguments of the network beside the images have their defaults, as in such a call.

    Args:
        with_hooks: Make forward hooks of layers a part of the graph. Else they stay with the
            layers, which the graph shares.
    """

    failed_in: str | None = None

    def __init__(self, *, with_hooks: bool = False) -> None:
        super().__init__()
        self.with_hooks = with_hooks

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return what is to be traced, and its arguments: the network itself, and inputs."""
        assert isinstance(self.root, nn.Module)
        names = _inputs(self.root)
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in names]
        with_hooks = self.with_hooks

        def call(network: nn.Module, *inputs: fx.Proxy) -> Any:
            # Not a plain call, which would be traced as that of a layer.
            called: Callable[..., Any] = network._call_impl if with_hooks else network.forward
            return called(*inputs)

        return call, [self.root, *inputs]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether ``m`` stays whole: not where its ``forward`` was replaced by another."""
        return "forward" not in vars(m) and super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace a call of a module, and keep its name where that fails."""
        if m not in (self.submodule_paths or {}):
            # Made by the network's code on the way, as in nn.Softmax(dim=1)(x).
            return forward(*args, **kwargs)
        try:
            if self.with_hooks and self.is_leaf_module(m, name := self.path_of_module(m)):
                return self._call_with_hooks(m, name, forward, args, kwargs)
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = self.path_of_module(m)
            raise

    def _call_with_hooks(
        self,
        layer: nn.Module,
        name: str,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace what the hooks of a layer do before and after it, around a node for the layer."""

        def compute(*args: Any, **kwargs: Any) -> fx.Proxy:
            return self.create_proxy("call_module", name, args, kwargs)

        vars(layer)["forward"] = compute
        try:
            return call(*args, **kwargs)
        finally:
            del vars(layer)["forward"]


def _inputs(network: nn.Module) -> list[str]:
    """Return the names of a network's inputs: the images, and arguments without defaults."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    named = [each for each in parameters if each.kind in _POSITIONAL]
    needed = [each.name for each in named[1:] if each.default is each.empty]
    return [named[0].name if named else "images", *needed]


def trace(network: nn.Module, *, with_hooks: bool = False) -> fx.GraphModule:
    """Return the graph of ``network``, whose layers it shares.

    Branches on ``training`` are decided as the network's mode is now, so put it in evaluation
    mode first. Layers of ``torch.nn`` stay whole; everything around them is taken apart. The
    graph takes images alone: further arguments have their defaults.

    Args:
        network: To be traced.
        with_hooks: As of :class:`PlaceTracer`.

    Raises:
        ModelError: the network's Python code depends on values that only exist when it runs.
    """
    return trace_with(PlaceTracer(with_hooks=with_hooks), network)


def trace_with(tracer: PlaceTracer, network: nn.Module) -> fx.GraphModule:
    """Trace as :func:`trace`, with a tracer that may know more than the network's code says."""
    if isinstance(network, fx.GraphModule) and not tracer.with_hooks:
        graph = copy.deepcopy(network.graph)
        _bind_defaults(graph)
        return copy_head(network, fx.GraphModule(network, graph))
    name = type(network).__name__
    try:
        graph = tracer.trace(network)
        # Some networks keep what they compute, and so proxies of an earlier tracing.
        graph.lint()
        return fx.GraphModule(tracer.root, graph, name)
    except Exception as error:  # whatever the network's own code raises when it meets proxies
        reason = first_line(error)
        if "does not support item assignment" in reason:
            reason = (
                "a graph cannot hold an assignment into a part of a tensor (x[...] = y); "
                "torch.cat or torch.where does the same"
            )
        module = f" in module {tracer.failed_in!r}" if tracer.failed_in else ""
        place = innermost_place(error.__traceback__)
        raise ModelError(
            f"the network {name} cannot be traced by torch.fx{module} at {place}: {reason}"
        ) from error


def _bind_defaults(graph: fx.Graph) -> None:
    """Give the arguments of a graph behind the images their defaults, where they have some."""
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        default = partial(_default_of, node)
        for user in list(node.users) if node.args else []:
            user.args = fx.node.map_arg(user.args, default)
            user.kwargs = fx.node.map_arg(user.kwargs, default)
        if not node.users:
            graph.erase_node(node)


def _default_of(argument: fx.Node, node: fx.Node) -> Any:
    """Return ``node``, or the default of ``argument`` where it is that."""
    return argument.args[0] if node is argument else node


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
    """The node, or a copy of its value where a later operation overwrites it, or a view of it."""
    if not is_overwritten(node, graph_module):
        return node
    with node.graph.inserting_after(node):
        return node.graph.call_method("clone", (node,))


def batch_norm_inputs(graph_module: fx.GraphModule) -> list[tuple[str, str]]:
    """List the inputs of the BatchNorm layers, in order of execution.

    Layers that keep no running statistics are left out: a batch has nothing to match there.

    Returns:
        For each call of a BatchNorm, the name of the node that feeds it and the dotted
        name of the layer.
    """
    return [
        (node.all_input_nodes[0].name, str(node.target))
        for node in graph_module.graph.nodes
        if isinstance(layer := layer_of(node, graph_module), BATCH_NORMS)
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
    for convolution, name, normalization in foldable_batch_norms(folded, _FOLDED):
        assert isinstance(convolution, _ConvNd)
        # A reparametrized weight (weight normalization) is no parameter and would be overwritten.
        if isinstance(convolution.weight, nn.Parameter):
            _fold(convolution, normalization)
            folded.set_submodule(name, nn.Identity())
    return folded.eval()


def foldable_batch_norms(
    graph_module: fx.GraphModule, kinds: Collection[type[nn.Module]]
) -> Iterator[tuple[nn.Module, str, BatchNorm]]:
    """Yield convolutions whose only follower is a BatchNorm, both called once.

    Identities and dropout, which do nothing in evaluation mode, may lie between them.

    Args:
        graph_module: Its BatchNorms may be replaced on the way.
        kinds: The exact classes of the convolutions. Not those of linear layers, whose outputs
            need not be the channels of the BatchNorm behind them.

    Yields:
        The convolution, and the dotted name and the layer of the BatchNorm behind it.
    """
    calls = Counter(
        str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"
    )
    for node in graph_module.graph.nodes:
        normalization = layer_of(node, graph_module)
        if not isinstance(normalization, BATCH_NORMS) or normalization.running_var is None:
            continue
        source = node.all_input_nodes[0]
        while isinstance(layer_of(source, graph_module), IDENTITIES) and len(source.users) == 1:
            source = source.all_input_nodes[0]
        convolution = layer_of(source, graph_module)
        alone = len(source.users) == 1 and calls[str(source.target)] == calls[str(node.target)] == 1
        if convolution is not None and type(convolution) in kinds and alone:
            yield convolution, str(node.target), normalization


@torch.no_grad()
def _fold(convolution: _ConvNd, normalization: BatchNorm) -> None:
    """Give ``convolution`` the weights and the bias of the two layers together."""
    scale, shift = batch_norm_affine(normalization)
    weight, bias = convolution.weight, convolution.bias
    if bias is not None:
        shift = shift + scale * bias.double()
    trains = weight.requires_grad
    rows = output_first(convolution).double()
    folded = rows * scale.view(-1, *(1,) * (rows.dim() - 1))
    if isinstance(convolution, TRANSPOSED_LAYERS):
        folded = swapped(folded, convolution.groups).contiguous()
    convolution.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=trains)
    convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=trains)


@torch.no_grad()
def batch_norm_affine(normalization: BatchNorm) -> tuple[Tensor, Tensor]:
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
