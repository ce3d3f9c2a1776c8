"""What a network puts out in place of logits: probabilities, or their logarithms.

Losses of distillation are made for logits, and a softmax of a softmax teaches hardly anything. So
a network is cut where its logits are, and what came behind them is put back in the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.graph.outputs import puts_out_several, separate

LOGITS = "logits"
"""Name of what a network without a head puts out."""
NEXT_TOKENS = "next_tokens"
"""Logits with the classes last, (N, length, classes), as networks of tokens have them."""
SEVERAL = "several"
"""Several tensors in a container, none of which need be logits."""
_KEY = "hast_lightning.head"
_TINY = 1e-30
"""Keeps the logarithm of a probability finite; far below what float32 resolves beside one."""
_LEAST_LOGARITHM = -88.0
"""Of a number that float32 holds."""
_TOLERANCE = 1e-5


_HEADS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "softmax": (torch.softmax, (1,)),
    "log_softmax": (torch.log_softmax, (1,)),
    "sigmoid": (torch.sigmoid, ()),
    "logsigmoid": (F.logsigmoid, ()),
}
"""Functions and their arguments behind the logits."""
HEADS = (LOGITS, NEXT_TOKENS, *_HEADS)
"""All that a network may put out that has classes."""


def head_of(network: nn.Module) -> str:
    """Return what the network put out before it was cut: of :data:`HEADS`, or several tensors."""
    if puts_out_several(network):
        return SEVERAL
    return str(network.meta.get(_KEY, LOGITS)) if isinstance(network, fx.GraphModule) else LOGITS


def logits_of(outputs: Tensor, head: str) -> Tensor:
    """Return logits (N, classes) of what a network with a head puts out.

    Of a softmax they are logarithms of probabilities, which have the same softmax as the logits
    that it was made of.

    Args:
        outputs: (N, classes).
        head: One of :data:`HEADS`.
    """
    if head == NEXT_TOKENS:
        return outputs.movedim(-1, 1)
    if head == "softmax":
        return (outputs + _TINY).log()
    if head in ("sigmoid", "logsigmoid"):
        probabilities = probabilities_of(outputs, head)
        logarithms = outputs if head == "logsigmoid" else (outputs + _TINY).log()
        return logarithms - torch.log1p(-probabilities).clamp_min(_LEAST_LOGARITHM)
    return outputs


def probabilities_of(outputs: Tensor, head: str) -> Tensor:
    """Return probabilities (N, classes) of what a network puts out.

    Those of sigmoids need not add up to one.

    Args:
        outputs: (N, classes).
        head: One of :data:`HEADS`.
    """
    if head == NEXT_TOKENS:
        return outputs.movedim(-1, 1).softmax(dim=1)
    if head in ("softmax", "sigmoid"):
        return outputs
    return outputs.exp() if head in ("log_softmax", "logsigmoid") else outputs.softmax(dim=1)


def cut_head(network: fx.GraphModule, images: Tensor, outputs: Tensor) -> bool:
    """Have a network put out its logits where it puts out something that is made of them.

    A head is found by what it computes, however it is written: it is the earliest value of the
    network whose softmax (or sigmoid, or the logarithm of either) is the network's output.
    Probabilities that are made in any other way, such as a mean of several softmaxes, get a
    logarithm behind them.

    Args:
        network: Changed in place.
        images: (N, C, H, W); two or more.
        outputs: What the network puts out for them, (N, classes).

    Returns:
        Whether it was cut; :func:`head_of` then says what it put out.
    """
    found = _find(network, images, outputs)
    output = network.graph.output_node()
    former = output.args[0]
    with network.graph.inserting_before(output):
        if found is not None:
            head, logits, dimensions = found
            if dimensions > 2:
                logits = network.graph.call_method("flatten", (logits, 1))
        elif _are_distributions(outputs):
            head = "softmax"
            raised = network.graph.call_function(torch.add, (former, _TINY))
            logits = network.graph.call_function(torch.log, (raised,))
        else:
            return False
    output.args = (logits,)
    _erase_unused(network.graph, former)
    network.recompile()
    network.meta[_KEY] = head
    return True


def put_classes_second(network: fx.GraphModule) -> None:
    """Have a network of tokens, changed in place, put out (N, classes, length).

    So its positions are those of a map. :func:`restore_head` gives them back as they were.
    """
    _transpose(network)
    network.meta[_KEY] = NEXT_TOKENS


def _transpose(network: fx.GraphModule) -> None:
    output = network.graph.output_node()
    with network.graph.inserting_before(output):
        output.args = (network.graph.call_method("transpose", (output.args[0], 1, 2)),)
    network.recompile()


def _erase_unused(graph: fx.Graph, node: object) -> None:
    """Erase a node that nothing uses, and what was computed for it alone."""
    if isinstance(node, fx.Node) and not node.users and node.op != "placeholder":
        sources = node.all_input_nodes
        graph.erase_node(node)
        for source in sources:
            _erase_unused(graph, source)


def restore_head(network: nn.Module) -> nn.Module:
    """Return a network, changed in place, that puts out what it did before it was cut."""
    head = head_of(network)
    if head == LOGITS or not isinstance(network, fx.GraphModule):
        return network
    if head == SEVERAL:
        return separate(network)
    del network.meta[_KEY]
    if head == NEXT_TOKENS:
        _transpose(network)
        return network
    output = network.graph.output_node()
    function, arguments = _HEADS[head]
    with network.graph.inserting_before(output):
        output.args = (network.graph.call_function(function, (output.args[0], *arguments)),)
    network.graph.lint()
    network.recompile()
    return network


def copy_head(source: fx.GraphModule, target: fx.GraphModule) -> fx.GraphModule:
    """Return ``target``, which from now on has the head of ``source``, and its kind of output."""
    for key, value in source.meta.items():
        if str(key).startswith("hast_lightning."):
            target.meta[key] = value
    return target


class _Recorder(fx.Interpreter):
    """Keeps the values that have one number per class."""

    def __init__(self, network: fx.GraphModule, shape: torch.Size) -> None:
        super().__init__(network)
        self.shape = shape
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, node: fx.Node) -> object:
        """Run one node."""
        value: object = super().run_node(node)
        if isinstance(value, Tensor) and node.op.startswith("call_"):
            shape = value.shape
            per_class = shape[:2] == self.shape and value.numel() == self.shape.numel()
            if per_class and value.is_floating_point():
                # A copy: later operations may overwrite it.
                self.values[node] = value.clone()
        return value


@torch.no_grad()
def _find(
    network: fx.GraphModule, images: Tensor, outputs: Tensor
) -> tuple[str, fx.Node, int] | None:
    """Return the name of the head, the node of the logits and its dimensions; none without one."""
    recorder = _Recorder(network, outputs.shape)
    recorder.run(images.clone())
    for node, value in recorder.values.items():
        if node is network.graph.output_node().args[0]:
            break
        for head, (function, arguments) in _HEADS.items():
            made = function(value.flatten(1), *arguments)
            if torch.allclose(made, outputs, _TOLERANCE, _TOLERANCE / 10):
                return head, node, value.dim()
    return None


def _are_distributions(outputs: Tensor) -> bool:
    sums = outputs.sum(dim=1)
    return bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
