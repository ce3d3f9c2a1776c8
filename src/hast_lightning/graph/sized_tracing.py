"""Tracing with the size of the images known.

Code such as ``if x.shape[-1] < 7`` or padding that is worked out from the input's height stops
torch.fx, to which a size is as unknown as a value. The input size of a pretrained network is
fixed, though, so every size that does not depend on the number of images is a plain number.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import fx, nn

from hast_lightning.core.network import example_inputs
from hast_lightning.graph.hooks import remove_hooks
from hast_lightning.graph.tracing import PlaceTracer, trace_with

# Two, so that what differs between them is known to depend on the number of images.
_BATCH_SIZES = (2, 3)


def trace_sized(
    network: nn.Module, input_shape: Sequence[int], *, with_hooks: bool = False
) -> fx.GraphModule:
    """Return the graph of ``network`` for images (N, C, H, W) of one size and any N.

    Args:
        network: in evaluation mode; its layers are shared.
        input_shape: (C, H, W); of tokens (length,).
        with_hooks: As of :class:`~hast_lightning.graph.tracing.PlaceTracer`.

    Raises:
        ModelError: as :func:`hast_lightning.graph.tracing.trace`.
    """
    graph_module = trace_with(_SizedTracer(network, input_shape, with_hooks), network)
    for node in reversed(graph_module.graph.nodes):
        if node.target == "size" and not node.users:
            graph_module.graph.erase_node(node)
    graph_module.recompile()
    return graph_module


class _UnknownError(Exception):
    """A value that cannot be worked out without running the network."""


class _SizedTracer(PlaceTracer):
    """Follows the graph with tensors that have sizes and no content, at two batch sizes."""

    def __init__(self, network: nn.Module, input_shape: Sequence[int], with_hooks: bool) -> None:
        super().__init__(with_hooks=with_hooks)
        self._shadow = copy.deepcopy(network).to("meta")
        if with_hooks:
            remove_hooks(self._shadow)
        self._values: dict[fx.Node, tuple[Any, ...]] = {}
        self._following = False
        self._images = tuple(
            example_inputs(count, input_shape).to("meta") for count in _BATCH_SIZES
        )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows its size."""
        return _SizedProxy(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        """Add a node and follow it."""
        proxy = super().create_proxy(*args, **kwargs)
        self._following = True
        try:
            self._values[proxy.node] = self._follow(proxy.node)
        except Exception:  # then its size stays unknown, as it is to torch.fx itself
            self._values.pop(proxy.node, None)
        finally:
            self._following = False
        return proxy

    # While a layer is followed it must compute, and not be traced in its turn.

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace a call, or make it where this is following."""
        if self._following:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """The proxy of a parameter, or the parameter itself where this is following."""
        if self._following:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _follow(self, node: fx.Node) -> tuple[Any, ...]:
        if node.op == "placeholder":
            if self._values:
                raise _UnknownError  # optional arguments of forward
            return self._images
        with torch.no_grad():
            return tuple(self._compute(node, batch) for batch in range(len(_BATCH_SIZES)))

    def _compute(self, node: fx.Node, batch: int) -> Any:
        if node.op == "get_attr":
            # From the network itself, which also has the constants that were met on the way.
            return _without_content(operator.attrgetter(str(node.target))(self.root))
        args = fx.node.map_arg(node.args, lambda other: self._value(other, batch))
        kwargs = fx.node.map_arg(node.kwargs, lambda other: self._value(other, batch))
        if node.op == "call_module":
            return self._shadow.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _value(self, node: fx.Node, batch: int) -> Any:
        # Nodes of buffers are made without create_proxy.
        if node not in self._values and node.op == "get_attr":
            return self._compute(node, batch)
        if node not in self._values:
            raise _UnknownError
        return self._values[node][batch]

    def sizes(self, proxy: fx.Proxy) -> tuple[Any, ...] | None:
        """The size of a tensor: numbers, and proxies for what the number of images decides."""
        values = self._values.get(proxy.node, ())
        if not values or not all(isinstance(value, torch.Tensor) for value in values):
            return None
        pairs = list(zip(*(value.shape for value in values), strict=True))
        return tuple(
            first if first == second else self.create_proxy("call_method", "size", (proxy, i), {})
            for i, (first, second) in enumerate(pairs)
        )


def _without_content(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


class _SizedProxy(fx.Proxy):
    """A proxy whose size is known as far as it does not depend on the number of images."""

    tracer: _SizedTracer

    @property
    def shape(self) -> Any:
        sizes = self.tracer.sizes(self)
        return super().__getattr__("shape") if sizes is None else sizes

    @property
    def ndim(self) -> Any:
        sizes = self.tracer.sizes(self)
        return super().__getattr__("ndim") if sizes is None else len(sizes)

    def size(self, dim: int | None = None) -> Any:
        sizes = self.tracer.sizes(self)
        if sizes is None:
            return super().__getattr__("size")(*(() if dim is None else (dim,)))
        return sizes if dim is None else sizes[dim]

    def dim(self) -> Any:
        return self.ndim

    def numel(self) -> Any:
        sizes = self.tracer.sizes(self)
        return super().__getattr__("numel")() if sizes is None else reduce(operator.mul, sizes, 1)
