"""Attention written out: linear layers, a product, a softmax and a product, which can be quantized.

``torch.nn`` and its libraries compute attention in one go (fused). What is inside, the projections
and the operands of both products, is then out of reach. Here modules and functions of that kind are
replaced by what they compute (Vaswani et al., NeurIPS 2017, equation 1):

    scores = q k^T        probabilities = softmax(scores / sqrt(d) + mask)        probabilities v

Masks are added: zero where a token counts, and the lowest float32 where it does not. Minus infinity
would be NaN in files and gradients.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from hast_lightning.errors import ModelError
from hast_lightning.graph.windows import WINDOWED, written_windows

LOWEST = torch.finfo(torch.float32).min
"""What is added to scores that are masked out."""


def linear_of(weight: Any, bias: Any) -> nn.Linear:
    """Return a linear layer that has these parameters, not copies."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = weight
    layer.register_parameter("bias", bias)
    return layer


def additive(mask: Tensor, *, true_counts: bool) -> Tensor:
    """Return a mask as what is added to scores, float32 and finite, of the same shape.

    Args:
        mask: Boolean, or numbers that are added as they are.
        true_counts: Whether true marks tokens that count, as in
            ``F.scaled_dot_product_attention``; in ``nn.MultiheadAttention`` it marks the others.
    """
    if mask.dtype != torch.bool:
        return mask.float().clamp_min(LOWEST)
    left_out = ~mask if true_counts else mask
    return torch.zeros(mask.shape).masked_fill(left_out.cpu(), LOWEST)


class WrittenAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, in layers and products; it shares the parameters.

    Args:
        attention: Its kinds of masks are boolean or float (T, S) constants.
        name: In the network, for messages.

    Raises:
        ModelError: it adds rows to keys and values (``add_bias_kv``, ``add_zero_attn``).
    """

    def __init__(self, attention: nn.MultiheadAttention, name: str) -> None:
        super().__init__()
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ModelError(
                f"the network's layer {name} is a MultiheadAttention with add_bias_kv or "
                "add_zero_attn, which cannot be written out"
            )
        self.name, self.heads = name, attention.num_heads
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        bias = attention.in_proj_bias
        if attention.in_proj_weight is not None:
            self.in_proj = linear_of(attention.in_proj_weight, bias)
        else:
            parts = (
                [None] * 3 if bias is None else [nn.Parameter(b) for b in bias.detach().chunk(3)]
            )
            names = ("q_proj", "k_proj", "v_proj")
            for each, part in zip(names, parts, strict=True):
                setattr(self, each, linear_of(getattr(attention, f"{each}_weight"), part))
        self.out_proj = linear_of(attention.out_proj.weight, attention.out_proj.bias)
        self.train(attention.training)

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, Any]:
        """Attend as ``nn.MultiheadAttention`` does, and return (output, weights or none).

        Args:
            query: (N, T, D), or (T, N, D) without ``batch_first``.
            key: (N, S, E), likewise.
            value: (N, S, F), likewise.
            key_padding_mask: None alone.
            need_weights: Return the probabilities, too.
            attn_mask: (T, S), a constant.
            average_attn_weights: Their mean over heads.
            is_causal: A hint to kernels, without meaning here.
        """
        bias = self._constant_mask(attn_mask, key_padding_mask)
        q, k, v = (self._heads_of(part) for part in self._projected(query, key, value))
        scores = (
            torch.matmul(q, k.transpose(-2, -1)) * (self.out_proj.in_features // self.heads) ** -0.5
        )
        if bias is not None:
            scores = scores + bias
        weights = F.softmax(scores, dim=-1)
        kept = F.dropout(weights, self.dropout, self.training) if self.training else weights
        attended = torch.matmul(kept, v).transpose(1, 2).flatten(2)
        output = self.out_proj(attended)
        if not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        return output, weights.mean(dim=1) if average_attn_weights else weights

    def _projected(self, query: Any, key: Any, value: Any) -> list[Any]:
        if not hasattr(self, "in_proj"):
            given = ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
            return [layer(each) for layer, each in given]  # type: ignore[operator]
        if query is key and key is value:
            parts = self.in_proj(query).chunk(3, dim=-1)
            return [parts[i] for i in range(3)]
        width = self.out_proj.in_features
        rows = [slice(i * width, (i + 1) * width) for i in range(3)]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        return [
            F.linear(each, weight[row], None if bias is None else bias[row])
            for each, row in zip((query, key, value), rows, strict=True)
        ]

    def _heads_of(self, projected: Any) -> Any:
        """From (N, T, D) to (N, heads, T, D / heads)."""
        tokens_first = projected if self.batch_first else projected.transpose(0, 1)
        return tokens_first.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _constant_mask(self, mask: Any, padding: Any) -> Tensor | None:
        if padding is not None:
            raise ModelError(f"attention {self.name}: key_padding_mask cannot be written out")
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise ModelError(
                f"attention {self.name}: attn_mask has to be a constant of (T, S) to be written out"
            )
        return additive(mask.detach(), true_counts=False)


class WrittenEncoderLayer(nn.Module):
    """What ``nn.TransformerEncoderLayer`` computes, whose layers it shares."""

    linear1: nn.Module
    linear2: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    dropout: nn.Module
    dropout1: nn.Module
    dropout2: nn.Module

    def __init__(self, layer: nn.TransformerEncoderLayer, name: str) -> None:
        super().__init__()
        self.norm_first, self.activation = layer.norm_first, layer.activation
        self.self_attn = WrittenAttention(layer.self_attn, f"{name}.self_attn")
        for each in ("linear1", "linear2", "norm1", "norm2", "dropout", "dropout1", "dropout2"):
            setattr(self, each, getattr(layer, each))
        self.train(layer.training)

    def forward(
        self,
        src: Any,
        src_mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool = False,
    ) -> Any:
        """Map tokens (N, T, D), or (T, N, D), to the same shape."""
        masks = src_mask, src_key_padding_mask
        if self.norm_first:
            between = src + self._attend(self.norm1(src), *masks)
            return between + self._feed(self.norm2(between))
        between = self.norm1(src + self._attend(src, *masks))
        return self.norm2(between + self._feed(between))

    def _attend(self, x: Any, mask: Any, padding: Any) -> Any:
        attended, _ = self.self_attn(
            x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False
        )
        return self.dropout1(attended)

    def _feed(self, x: Any) -> Any:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class WrittenEncoder(nn.Module):
    """What ``nn.TransformerEncoder`` computes, whose layers it shares."""

    def __init__(self, encoder: nn.TransformerEncoder, name: str) -> None:
        super().__init__()
        self.layers, self.norm = encoder.layers, encoder.norm
        self.train(encoder.training)

    def forward(
        self,
        src: Any,
        mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool | None = None,
    ) -> Any:
        """Map tokens through all layers, and the norm behind them where there is one."""
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


_WRITTEN: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.TransformerEncoder: WrittenEncoder,
    nn.TransformerEncoderLayer: WrittenEncoderLayer,
    nn.MultiheadAttention: WrittenAttention,
}
"""Outer kinds first: an encoder's layers are replaced where they then stand."""


def has_fused_modules(network: nn.Module) -> bool:
    """Return whether attention of ``torch.nn`` or of torchvision's Swin is in a network."""
    return any(_writer(module) is not None for module in network.modules())


def write_out_modules(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose modules of attention are written out.

    Args:
        network: Left as it is. Modules with hooks of their own stay as they are.

    Raises:
        ModelError: an attention uses what cannot be written out.
    """
    written = copy.deepcopy(network)
    if (write := _writer(written)) is not None:
        written = write(written, "")
    for kind in (*_WRITTEN, None):
        for name, module in list(written.named_modules(remove_duplicate=False)):
            write = _writer(module)
            if name and write is not None and kind in (type(module), None):
                written.set_submodule(name, write(module, name))
    return written


def _writer(module: nn.Module) -> Callable[..., nn.Module] | None:
    """Return what writes a module out; none where it is none of these, or has hooks."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return None
    if type(module).__module__ == WINDOWED:
        return written_windows(module)
    return _WRITTEN.get(type(module))


def write_out_functions(graph_module: fx.GraphModule, images: Tensor) -> bool:
    """Write ``F.scaled_dot_product_attention`` out wherever a graph calls it.

    Args:
        graph_module: Changed in place.
        images: (N, C, H, W), to see how long heads and sequences are.

    Returns:
        Whether anything was changed.

    Raises:
        ModelError: keys have fewer heads than queries, or a mask is made anew for every input.
    """
    nodes = [
        node
        for node in graph_module.graph.nodes
        if node.op == "call_function" and node.target is F.scaled_dot_product_attention
    ]
    if not nodes:
        return False
    with torch.no_grad():
        ShapeProp(graph_module).propagate(images)
    for node in nodes:
        _write_out(node, graph_module)
    for node in graph_module.graph.nodes:
        node.meta.pop("tensor_meta", None)
    graph_module.graph.lint()
    graph_module.recompile()
    return True


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _write_out(node: fx.Node, graph_module: fx.GraphModule) -> None:
    """Replace one call; the new nodes are called after it."""
    given = {**dict(zip(_ARGUMENTS, node.args, strict=False)), **node.kwargs}
    if given.get("enable_gqa"):
        raise ModelError(f"attention {node.name}: enable_gqa cannot be written out")
    query, key, value = (_node_of(given, name) for name in ("query", "key", "value"))
    rows, width = query.meta["tensor_meta"].shape[-2:]
    scale = given.get("scale")
    scale = 1 / math.sqrt(width) if scale is None else scale
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        mask = torch.ones(rows, key.meta["tensor_meta"].shape[-2], dtype=torch.bool).tril()
    graph = node.graph
    with graph.inserting_before(node):

        def call(function: Any, name: str, *args: Any, **options: Any) -> fx.Node:
            return graph.create_node(
                "call_function", function, args, options, f"{node.name}_{name}"
            )

        turned = call(torch.transpose, "keys", key, -2, -1)
        scores = call(torch.matmul, "scores", query, turned)
        scores = call(operator.mul, "scaled", scores, scale)
        if mask is not None:
            scores = call(operator.add, "masked", scores, _mask_node(mask, node, graph_module))
        weights = call(F.softmax, "probabilities", scores, dim=-1)
        attended = call(torch.matmul, "output", weights, value)
    node.replace_all_uses_with(attended)
    graph.erase_node(node)


def _node_of(arguments: dict[str, Any], name: str) -> fx.Node:
    node = arguments[name]
    assert isinstance(node, fx.Node)
    return node


def _mask_node(mask: Any, node: fx.Node, graph_module: fx.GraphModule) -> Any:
    """Return the node of what is added to scores: a constant of the graph, or a value as it is."""
    if isinstance(mask, fx.Node):
        if mask.op != "get_attr":
            if mask.meta["tensor_meta"].dtype == torch.bool:
                raise ModelError(
                    f"attention {node.name}: a boolean attn_mask that is made anew for every input "
                    "cannot be written out"
                )
            return mask
        value = operator.attrgetter(str(mask.target))(graph_module)
        if value.dtype != torch.bool and bool(value.isfinite().all()):
            return mask
        mask = value
    name = f"{node.name}_mask"
    graph_module.register_buffer(name, additive(mask.detach(), true_counts=True))
    return node.graph.get_attr(name)
