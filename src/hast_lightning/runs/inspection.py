"""``command=inspect``: what would be quantized, and what for, before anything is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from torch import fx

from hast_lightning.config import Config
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.blocks import select_taps
from hast_lightning.graph.tracing import trace
from hast_lightning.models.teacher import batch_norms_are_new
from hast_lightning.models.zoo import load as load_network
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.size import float_bytes, quantized_bytes
from hast_lightning.quantization.structure import Step, steps
from hast_lightning.records.structure_table import structure_table, totals_table

_NAMES_SHOWN = 3


def inspect(config: Config, console: Console | None = None) -> None:
    """Print what the network is made of and what quantizing it changes.

    Needs neither evaluation data nor a run folder.

    Args:
        config: A checked configuration, of which ``model`` and ``quantizer`` count.
        console: Where to print; none: standard output.

    Raises:
        UserError: what a run would refuse the network for, too.
    """
    console = console or Console()
    pretrained = load_network(config.model)
    graph_module = trace(pretrained.network)
    taps = select_taps(graph_module, config.model.taps)
    student = convert(pretrained.network, config.quantizer)
    found = steps(student, taps, torch.zeros(1, *pretrained.input_shape))
    size = float_bytes(pretrained.network)
    quantizer = config.quantizer
    bits = f"W{quantizer.weight_bits}A{quantizer.activation_bits} ({quantizer.name})"
    console.print(structure_table(f"{pretrained.name}, {bits}", found))
    parameters = sum(parameter.numel() for parameter in pretrained.network.parameters())
    console.print(totals_table(found, parameters, size, quantized_bytes(student, size)))
    places = {node.name: str(node.target) for node in graph_module.graph.nodes}
    lines = [
        *_describe_network(pretrained, config),
        *_describe_statistics(graph_module),
        *_describe_parts(found, [places[tap] for tap in taps]),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _describe_network(pretrained: PretrainedNetwork, config: Config) -> Iterator[str]:
    shape = "x".join(map(str, pretrained.input_shape))
    mean, std = (", ".join(f"{v:g}" for v in part) for part in (pretrained.mean, pretrained.std))
    assumed = config.model.provider == "own" and config.model.mean is None
    yield f"input: {shape}, mean {mean}, std {std}{' (assumed: ImageNet)' * assumed}"
    names = pretrained.class_names or ()
    yield f"classes: {pretrained.num_classes} ({_some(names) if names else 'without names'})"
    if config.model.pretrained:
        own = "as model.factory returns them" if config.model.factory else "the provider's own"
        origin = config.model.checkpoint or own
        yield f"weights: {origin}, SHA-256 {pretrained.checksum[:12]}..."
    else:
        yield "weights: random (model.pretrained=false)"


def _describe_statistics(graph_module: fx.GraphModule) -> Iterator[str]:
    if batch_norms_are_new(graph_module):
        yield (
            "BatchNorms: mean 0 and variance 1 everywhere, as in a network that was never trained"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_NAMES_SHOWN], *["..."] * (len(names) > _NAMES_SHOWN)])


def _describe_parts(found: list[Step], taps: list[str]) -> Iterator[str]:
    layers = sum(step.weight_bits is not None for step in found)
    norms = sum(step.batch_norms for step in found)
    quantizers = sum(step.output_bits is not None for step in found)
    yield f"quantized layers: {layers}, activation quantizers: {quantizers}, BatchNorms: {norms}"
    none = "none found: name them with model.taps where a term needs them"
    yield f"feature taps: {f'{len(taps)} ({_some(taps)})' if taps else none}"
