"""Corrections without training: BatchNorm statistics and biases, from teacher and student.

Both compare the student with the teacher on the same inputs, layer by layer in the order of
execution, each layer seeing what the corrected ones before it put out. A student that does not
quantize stays as it is, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from hast_lightning.graph.operations import layer_of
from hast_lightning.quantization.fake_quant import QuantConv2d, QuantLinear
from hast_lightning.runtime.ranks import averaged

SMALLEST_VARIANCE = 1e-12
"""A channel that varies less in the teacher says nothing of how much it should in the student."""


def channel_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of ``values`` (N, C, ...), float32.

    With several processes, the means over their inputs of both.
    """
    rows = values.detach().float().transpose(0, 1).flatten(1)
    var, mean = torch.var_mean(rows, dim=1, correction=0)
    return averaged(mean), averaged(var)


class _Watch(fx.Interpreter):
    """Runs a network and keeps what is wanted of some nodes' values."""

    def __init__(self, network: fx.GraphModule, wanted: dict[str, Any]) -> None:
        super().__init__(network, garbage_collect_values=True)
        self.wanted, self.found = wanted, dict[str, Any]()

    def run_node(self, n: fx.Node) -> Any:
        """Compute the node, and what is wanted of its value."""
        value = super().run_node(n)
        if n.name in self.wanted:
            self.found[n.name] = self.wanted[n.name](value)
        return value


class _Correct(fx.Interpreter):
    """Runs a student and corrects it on the way: what follows sees corrected values."""

    def __init__(self, student: fx.GraphModule, corrections: dict[str, Any]) -> None:
        super().__init__(student, garbage_collect_values=True)
        self.corrections = corrections

    def run_node(self, n: fx.Node) -> Any:
        """Correct what the node calls, if it is to be, and compute it."""
        if n.name in self.corrections:
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            return self.corrections[n.name](n, arguments[0], super().run_node)
        return super().run_node(n)


def _called_once(network: fx.GraphModule, kinds: tuple[type[nn.Module], ...]) -> list[fx.Node]:
    """Return the nodes of layers of some kinds that are called once, in order."""
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    return [
        node
        for node in network.graph.nodes
        if isinstance(layer_of(node, network), kinds) and calls[str(node.target)] == 1
    ]


@torch.no_grad()
def reestimate_batch_norms(student: fx.GraphModule, teacher: fx.GraphModule, inputs: Tensor) -> int:
    """Move the student's BatchNorm statistics by the difference that quantizing makes.

    ``mean = mean_T + (m_S - m_T)`` and ``var = var_T * v_S / v_T``, where ``mean_T, var_T`` are the
    teacher's running statistics and ``m, v`` are measured at the same BatchNorm on the same
    inputs. Plain re-estimation would import how far synthetic images are from the real ones.
    Ours; plain re-estimation as in AIMET.

    Args:
        student: Calibrated; its BatchNorms are changed.
        teacher: The float network, BatchNorms unfolded.
        inputs: (N, ...), all at once.

    Returns:
        How many BatchNorms were corrected.
    """
    norms = _called_once(student, (nn.BatchNorm2d, nn.BatchNorm1d))
    known = {node.name: node for node in teacher.graph.nodes}
    norms = [n for n in norms if n.name in known and _tracks(layer_of(n, student))]
    feeding = {known[n.name].all_input_nodes[0].name for n in norms}
    watch = _Watch(teacher, dict.fromkeys(feeding, channel_moments))
    watch.run(inputs)

    def correct(node: fx.Node, value: Tensor, run: Any) -> Any:
        float_layer = layer_of(known[node.name], teacher)
        of_teacher = watch.found[known[node.name].all_input_nodes[0].name]
        _move(layer_of(node, student), float_layer, channel_moments(value), of_teacher)
        return run(node)

    _Correct(student, {node.name: correct for node in norms}).run(inputs)
    return len(norms)


def _tracks(layer: nn.Module | None) -> bool:
    return getattr(layer, "running_mean", None) is not None


def _move(
    layer: Any, of_teacher: Any, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]
) -> None:
    """Set the running statistics of one layer."""
    (m_s, v_s), (m_t, v_t) = student, teacher
    layer.running_mean.copy_(of_teacher.running_mean + (m_s - m_t))
    ratio = torch.where(v_t > SMALLEST_VARIANCE, v_s / v_t, torch.ones_like(v_t))
    # A channel that quantizing made constant keeps the teacher's variance.
    ratio = torch.where(ratio > 0, ratio, torch.ones_like(ratio))
    layer.running_var.copy_(of_teacher.running_var * ratio)


@torch.no_grad()
def correct_biases(student: fx.GraphModule, teacher: fx.GraphModule, inputs: Tensor) -> int:
    """Take the mean error of every layer without a BatchNorm behind it off its bias.

    ``bias -= mean over N, H, W of (y_S - y_T)`` (empirical bias correction, Nagel et al., ICCV
    2019, section 4.2). Layers before a BatchNorm are corrected by its statistics instead.

    Args:
        student: Calibrated; its biases are changed, or made.
        teacher: The float network, BatchNorms unfolded.
        inputs: (N, ...), all at once.

    Returns:
        How many layers were corrected.
    """
    known = {node.name for node in teacher.graph.nodes}
    nodes = [
        node
        for node in _called_once(student, (QuantConv2d, QuantLinear))
        if node.name in known and not _feeds_batch_norm(node, student)
    ]
    watch = _Watch(teacher, {node.name: _channel_mean for node in nodes})
    watch.run(inputs)

    def correct(node: fx.Node, value: Tensor, run: Any) -> Any:
        layer = layer_of(node, student)
        assert isinstance(layer, QuantConv2d | QuantLinear)
        error = _channel_mean(run(node)) - watch.found[node.name]
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(error))
        layer.bias.sub_(error)
        return run(node)

    _Correct(student, {node.name: correct for node in nodes}).run(inputs)
    return len(nodes)


def _channel_mean(values: Tensor) -> Tensor:
    channel = 1 if values.dim() > 2 and values.dim() != 3 else values.dim() - 1
    return averaged(values.float().transpose(0, channel).flatten(1).mean(dim=1))


def _feeds_batch_norm(node: fx.Node, network: fx.GraphModule) -> bool:
    return any(
        isinstance(layer_of(user, network), nn.BatchNorm1d | nn.BatchNorm2d) for user in node.users
    )
