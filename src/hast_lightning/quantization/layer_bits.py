"""Bits of each layer's weights and of each value that is quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import fx

from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.errors import ConfigurationError
from hast_lightning.graph.operations import layer_of
from hast_lightning.quantization.fake_quant import QUANTIZED
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig

QUANTIZABLE = tuple(QUANTIZED)
"""Kinds of layers whose weights can be quantized."""
MOST_NAMES = 6
"""Names that a message shows, at most."""


class BitPlan(NamedTuple):
    """Bits of each layer's weights by its dotted name, and of each quantized node's value.

    What stays in floating point is in neither. Bits of the weights of some layers were ``chosen``
    for them: by an override, or since they are the first or the last.
    """

    weights: dict[str, int]
    activations: dict[fx.Node, int]
    chosen: frozenset[str] = frozenset()


def plan_bits(
    student: fx.GraphModule, nodes: Collection[fx.Node], settings: QuantizerConfig
) -> BitPlan:
    """Follow the overrides of the settings, layer by layer.

    A quantized value gets the most bits that a layer which takes it in asks for, so that it stays
    in floating point where one of them wants it so; one that no layer takes in gets
    ``settings.activation_bits``.

    Args:
        student: Its layers are not replaced yet.
        nodes: Whose values are quantized.
        settings: Bits, switch and overrides.

    Raises:
        ConfigurationError: an override matches no layer, or asks for bits of a value that is
            not quantized.
    """
    names = _layer_names(student)
    entries = [*_first_and_last(student, settings), *settings.overrides]
    usual = settings.widths
    weights = dict.fromkeys(names, usual.weights)
    inputs = dict.fromkeys(names, usual.activations)
    chosen: set[str] = set()
    for entry in entries:
        for name in _matching(entry, names):
            weights[name] = entry.weight_bits or entry.bits or weights[name]
            inputs[name] = entry.activation_bits or entry.bits or inputs[name]
            if entry.weight_bits or entry.bits:
                chosen.add(name)
    taken_in = {node: set(_takers(node, student, nodes)) for node in nodes}
    _refuse_ineffective(settings.overrides, names, taken_in)
    activations = {
        node: max((inputs[name] for name in takers), default=usual.activations)
        for node, takers in taken_in.items()
    }
    return BitPlan(
        {name: bits for name, bits in weights.items() if bits != FLOAT_BITS},
        {node: bits for node, bits in activations.items() if bits != FLOAT_BITS},
        frozenset(chosen),
    )


def _layer_names(student: fx.GraphModule) -> list[str]:
    """Names of the layers with weights, in order of execution, each once."""
    calls = [node for node in student.graph.nodes if _is_layer(node, student)]
    return list(dict.fromkeys(str(node.target) for node in calls))


def _is_layer(node: fx.Node, student: fx.GraphModule) -> bool:
    return isinstance(layer_of(node, student), QUANTIZABLE)


def _first_and_last(student: fx.GraphModule, settings: QuantizerConfig) -> Iterator[LayerBits]:
    """Layers before which there is no other, and layers after which there is none."""
    weights, inputs = (None if bits == FLOAT_BITS else 8 for bits in settings.widths)
    if not settings.first_and_last_8bit or weights is inputs is None:
        return
    nodes = list(student.graph.nodes)
    before: set[fx.Node] = set()
    after: set[fx.Node] = set()
    for node in nodes:
        if any(n in before or _is_layer(n, student) for n in node.all_input_nodes):
            before.add(node)
    for node in reversed(nodes):
        if any(n in after or _is_layer(n, student) for n in node.users):
            after.add(node)
    for node in nodes:
        if _is_layer(node, student) and not (node in before and node in after):
            # Names are no patterns: a bracket stands for itself.
            yield LayerBits(str(node.target), weights, inputs)


def _matching(entry: LayerBits, names: list[str]) -> list[str]:
    return [name for name in names if name == entry.layers or fnmatchcase(name, entry.layers)]


def _takers(node: fx.Node, student: fx.GraphModule, nodes: Collection[fx.Node]) -> Iterator[str]:
    """Names of the layers that ``node``'s value enters before it is quantized again."""
    pending, seen = list(node.users), set[fx.Node]()
    while pending:
        user = pending.pop()
        if user in seen:
            # Ways that part and meet again double with every such place.
            continue
        seen.add(user)
        if _is_layer(user, student):
            yield str(user.target)
        elif user not in nodes:
            pending.extend(user.users)


def _refuse_ineffective(
    overrides: Sequence[LayerBits], names: list[str], taken_in: dict[fx.Node, set[str]]
) -> None:
    for entry in overrides:
        matching = set(_matching(entry, names))
        if not matching:
            some = ", ".join(names[:: max(1, len(names) // MOST_NAMES)][:MOST_NAMES])
            raise ConfigurationError(
                f"quantizer.overrides: {entry.layers!r} matches no convolution or linear layer; "
                f"some of their names: {some}"
            )
        wanted = entry.activation_bits not in (None, FLOAT_BITS)
        if wanted and not any(matching & takers for takers in taken_in.values()):
            raise ConfigurationError(
                f"quantizer.overrides: {entry.layers!r} sets activation_bits="
                f"{entry.activation_bits}, but what these layers take in is not quantized"
            )
