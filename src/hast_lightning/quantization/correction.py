"""Corrections without training: BatchNorm statistics and biases, from teacher and student.

With samples, the student is compared with the teacher on the same inputs, layer by layer in the
order of execution, each layer seeing what the corrected ones before it put out. Without, BatchNorms
say what a layer takes in on average. A student that does not
quantize stays as it is, bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.graph.operations import (
    ADDITIONS,
    BATCH_NORMS,
    IDENTITIES,
    TRANSPOSED_LAYERS,
    calls,
    is_activation,
    is_rectifier,
    layer_of,
    makes_vectors,
)
from hast_lightning.graph.weights import output_first
from hast_lightning.quantization.fake_quant import QuantizedLayer, quantized_layers
from hast_lightning.quantization.layer_bits import QUANTIZABLE
from hast_lightning.runtime.ranks import averaged

SMALLEST_VARIANCE = 1e-12
"""A channel that varies less in the teacher says nothing of how much it should in the student."""

_AVERAGING_LAYERS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_MEAN_KEEPING = (
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(torch.flatten, "flatten", torch.mean, "mean"),
)


def channel_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of ``values`` (N, C, ...), float32.

    With several processes, those of all their inputs, of which each has as many.
    """
    rows = values.detach().float().transpose(0, 1).flatten(1)
    var, own = torch.var_mean(rows, dim=1, correction=0)
    mean = averaged(own)
    return mean, averaged(var + (own - mean).square())


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
            arguments, named = self.fetch_args_kwargs_from_env(n)
            value, *_ = (*arguments, *named.values())
            return self.corrections[n.name](n, value, super().run_node)
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
    Ours; plain re-estimation as in AIMET. Where the BatchNorm's factors are part of a layer's grid
    (``per_tensor``), another variance would round the weights anew, so the mean alone moves.

    Args:
        student: Calibrated; its BatchNorms are changed.
        teacher: The float network, BatchNorms unfolded.
        inputs: (N, ...), all at once.

    Returns:
        How many BatchNorms were corrected.
    """
    norms = _called_once(student, BATCH_NORMS)
    known = {node.name: node for node in teacher.graph.nodes}
    norms = [n for n in norms if n.name in known and _tracks(layer_of(n, student))]
    feeding = {known[n.name].all_input_nodes[0].name for n in norms}
    watch = _Watch(teacher, dict.fromkeys(feeding, channel_moments))
    watch.run(inputs)
    quantizers = [layer.weight_quantizer for _, layer in quantized_layers(student)]
    in_a_grid = {q.factors.norm for q in quantizers if q.factors is not None}

    def correct(node: fx.Node, value: Tensor, run: Any) -> Any:
        layer, float_layer = layer_of(node, student), layer_of(known[node.name], teacher)
        of_teacher = watch.found[known[node.name].all_input_nodes[0].name]
        both = (channel_moments(value), of_teacher)
        _move_mean(layer, float_layer, *both)
        if layer not in in_a_grid:
            _move_variance(layer, float_layer, *both)
        return run(node)

    _Correct(student, {node.name: correct for node in norms}).run(inputs)
    return len(norms)


def _tracks(layer: nn.Module | None) -> bool:
    return getattr(layer, "running_mean", None) is not None


_Moments = tuple[Tensor, Tensor]
"""Mean and variance of each channel."""


def _move_mean(layer: Any, of_teacher: Any, student: _Moments, teacher: _Moments) -> None:
    layer.running_mean.copy_(of_teacher.running_mean + (student[0] - teacher[0]))


def _move_variance(layer: Any, of_teacher: Any, student: _Moments, teacher: _Moments) -> None:
    v_s, v_t = student[1], teacher[1]
    ratio = torch.where(v_t > SMALLEST_VARIANCE, v_s / v_t, torch.ones_like(v_t))
    # A channel that quantizing made constant keeps the teacher's variance.
    ratio = torch.where(ratio > 0, ratio, torch.ones_like(ratio))
    layer.running_var.copy_(of_teacher.running_var * ratio)


def give_biases(student: fx.GraphModule, teacher: fx.GraphModule) -> None:
    """Give layers without a bias, and without a BatchNorm behind them, one of zeros.

    To be called before anything keeps the student's state or trains it, since another state has
    other keys.
    """
    for node in _own_biased(student, teacher):
        layer: Any = layer_of(node, student)
        if layer.bias is None:
            outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            layer.bias = nn.Parameter(layer.weight.new_zeros(outputs))


def _own_biased(student: fx.GraphModule, teacher: fx.GraphModule) -> list[fx.Node]:
    """Return the layers of both networks whose biases no BatchNorm behind them takes over."""
    known = {node.name for node in teacher.graph.nodes}
    return [
        node
        for node in _called_once(student, QUANTIZABLE)
        if node.name in known and not _feeds_batch_norm(node, student)
    ]


@torch.no_grad()
def correct_biases(student: fx.GraphModule, teacher: fx.GraphModule, inputs: Tensor) -> int:
    """Take the mean error of every layer without a BatchNorm behind it off its bias.

    ``bias -= mean over N, H, W of (y_S - y_T)`` (empirical bias correction, Nagel et al., ICCV
    2019, section 4.2). Layers before a BatchNorm are corrected by its statistics instead.

    Args:
        student: Calibrated; its biases are changed, or made as by :func:`give_biases`.
        teacher: The float network, BatchNorms unfolded.
        inputs: (N, ...), all at once.

    Returns:
        How many layers were corrected.
    """
    give_biases(student, teacher)
    nodes = _own_biased(student, teacher)
    means = {node.name: partial(_channel_mean, _channel_axis(node, student)) for node in nodes}
    watch = _Watch(teacher, means)
    watch.run(inputs)

    def correct(node: fx.Node, value: Tensor, run: Any) -> Any:
        layer: Any = layer_of(node, student)
        # One whose own weights are in floating point takes in rounded values all the same.
        error = means[node.name](run(node)) - watch.found[node.name]
        layer.bias.sub_(error)
        return run(node)

    _Correct(student, {node.name: correct for node in nodes}).run(inputs)
    return len(nodes)


def _channel_axis(node: fx.Node, network: fx.GraphModule) -> int:
    return -1 if isinstance(layer_of(node, network), nn.Linear) else 1


def _channel_mean(axis: int, values: Tensor) -> Tensor:
    return averaged(values.float().transpose(0, axis).flatten(1).mean(dim=1))


def _feeds_batch_norm(node: fx.Node, network: fx.GraphModule) -> bool:
    return any(isinstance(layer_of(user, network), BATCH_NORMS) for user in node.users)


# -- What BatchNorms say, without samples ---------------------------------------------------------


def rectified_mean(mean: Tensor, deviation: Tensor, highest: float = math.inf) -> Tensor:
    """Return the mean of ``min(max(x, 0), highest)`` where ``x`` is normally distributed.

    ``deviation * (phi(a) - phi(b)) + mean * (Phi(b) - Phi(a)) + highest * (1 - Phi(b))`` with
    ``a = -mean / deviation`` and ``b = (highest - mean) / deviation`` (Nagel et al., ICCV 2019,
    appendix C).

    Args:
        mean: Any shape.
        deviation: Standard deviation, of the same shape, not negative.
        highest: Where the activation function saturates; 6 for ReLU6.
    """
    mean, deviation = mean.double(), deviation.double().clamp_min(torch.finfo(torch.float64).tiny)
    a = -mean / deviation
    found: Tensor = deviation * _density(a) + mean * torch.special.ndtr(-a)
    if math.isfinite(highest):
        b = (highest - mean) / deviation
        above = torch.special.ndtr(-b)
        found = found - deviation * _density(b) - mean * above + highest * above
    return found


def _density(x: Tensor) -> Tensor:
    found: Tensor = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return found


class Told(NamedTuple):
    """Mean of each channel, (C,) in float64, and its deviation where it is normally distributed.

    ``vectors``: a sample has one value for each channel, so that linear layers see channels.
    """

    mean: Tensor
    deviation: Tensor | None = None
    vectors: bool = False


def told_by_batch_norms(network: fx.GraphModule) -> dict[fx.Node, Told]:
    """Return what BatchNorms tell of each channel, by node, where they do.

    A BatchNorm puts out the mean ``beta`` and the deviation ``|gamma|``, its activation function
    the mean of :func:`rectified_mean`. Averages keep means, and sums add them. Nothing is known
    behind the activation of a sum.

    Args:
        network: The float network, BatchNorms unfolded.
    """
    told: dict[fx.Node, Told] = {}
    for node in network.graph.nodes:
        found = _told_at(node, network, told)
        if found is not None:
            told[node] = found
    return told


def _told_at(node: fx.Node, network: fx.GraphModule, told: dict[fx.Node, Told]) -> Told | None:
    layer = layer_of(node, network)
    if isinstance(layer, BATCH_NORMS) and layer.affine:
        mean, deviation = layer.bias.detach().double(), layer.weight.detach().double().abs()
        return Told(mean, deviation, vectors=_takes_vectors(node, network))
    known = [told[source] for source in node.all_input_nodes if source in told]
    if not known or len(known) < len(node.all_input_nodes):
        return None
    first = known[0]
    vectors = first.vectors or makes_vectors(node, network)
    if calls(node, ADDITIONS) and len(known) == 2:
        return Told(known[0].mean + known[1].mean, vectors=vectors)
    if (isinstance(layer, nn.ReLU6) or calls(node, (F.relu6,))) and first.deviation is not None:
        return Told(rectified_mean(first.mean, first.deviation, 6.0), vectors=vectors)
    if is_rectifier(node, network):
        if first.deviation is None:
            return None
        return Told(rectified_mean(first.mean, first.deviation), vectors=vectors)
    if isinstance(layer, IDENTITIES):
        return first
    if isinstance(layer, (*_AVERAGING_LAYERS, nn.Flatten)) or calls(node, _MEAN_KEEPING):
        return Told(first.mean, vectors=vectors)
    return None


def _takes_vectors(norm: fx.Node, network: fx.GraphModule) -> bool:
    """Return whether a BatchNorm takes in one value for each channel."""
    at = norm.all_input_nodes[0]
    keeping = (*IDENTITIES, *BATCH_NORMS)
    while len(at.all_input_nodes) == 1 and (
        is_activation(at, network) or isinstance(layer_of(at, network), keeping)
    ):
        at = at.all_input_nodes[0]
    return isinstance(layer_of(at, network), nn.Linear) or makes_vectors(at, network)


@torch.no_grad()
def correct_by_statistics(
    student: fx.GraphModule,
    teacher: fx.GraphModule,
    *,
    batch_norms: bool = True,
    biases: bool = True,
) -> int:
    """Take the mean error that rounding weights makes off biases, by what BatchNorms tell.

    ``bias_o -= sum over i of (sum over k of (W_q - W)[o, i, k]) E[x_i]`` (analytic bias correction,
    Nagel et al., ICCV 2019, section 4.2.1), or the same added to the mean of the BatchNorm behind
    the layer, as it is in the teacher. Layers whose inputs nothing is told of stay as they are.
    Biases may be trained or given, so that of them the same is taken off every time.

    Args:
        student: Its biases or BatchNorms are changed.
        teacher: The float network, BatchNorms unfolded.
        batch_norms: Correct layers with a BatchNorm behind them.
        biases: Correct layers without one.

    Returns:
        How many layers were corrected.
    """
    if biases:
        give_biases(student, teacher)
    told, floats = told_by_batch_norms(teacher), dict(teacher.named_modules())
    known = {node.name: node for node in teacher.graph.nodes}
    corrected = 0
    for node in _called_once(student, (QuantizedLayer,)):
        layer, original = layer_of(node, student), floats.get(str(node.target))
        expected = told.get(known[node.name].all_input_nodes[0]) if node.name in known else None
        # A linear layer over positions takes in none of the channels that are told of.
        if expected is None or original is None:
            continue
        if isinstance(original, nn.Linear) and not expected.vectors:
            continue
        assert isinstance(layer, QuantizedLayer)
        error = layer.weight_quantizer.rounded(layer.weight).double()
        error -= output_first(original).double()
        if isinstance(layer, TRANSPOSED_LAYERS):
            # Each position of the output sees one of so many of the kernel's.
            error /= math.prod(layer.stride)
        shift = mean_shift(error, expected.mean.to(error.device))
        if shift is None:
            continue
        norm = _norm_alone(node, student)
        if norm is not None and batch_norms:
            of_teacher: Any = layer_of(known[norm.name], teacher)
            mean = cast("Any", layer_of(norm, student)).running_mean
            # From the teacher's on, so that a mean that is corrected already is not moved twice.
            mean.copy_(of_teacher.running_mean + shift.to(mean.dtype))
        elif norm is None and biases and not _feeds_batch_norm(node, student):
            layer.bias.sub_(shift.to(layer.bias.dtype))
        else:
            continue
        corrected += 1
    return corrected


def mean_shift(error: Tensor, means: Tensor) -> Tensor | None:
    """Return the mean change of each output, (out_channels,).

    Args:
        error: Of the weights, (out_channels, in_channels / groups, ...).
        means: Of the inputs, (in_channels,).

    Returns:
        None where the inputs are no multiple of what an output takes in.
    """
    summed = error.flatten(2).sum(2) if error.dim() > 2 else error
    outputs, inputs = summed.shape
    groups = len(means) // inputs
    if groups * inputs != len(means) or groups == 0 or outputs % groups:
        return None
    by_group = means.view(groups, 1, inputs).expand(groups, outputs // groups, inputs)
    return (summed * by_group.reshape(outputs, inputs)).sum(dim=1)


def _norm_alone(node: fx.Node, network: fx.GraphModule) -> fx.Node | None:
    """Return the BatchNorm that alone takes in a node's value and is called once, or none."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    norms = _called_once(network, BATCH_NORMS)
    return user if user in norms and _tracks(layer_of(user, network)) else None
