"""The ONNX graph of a frozen network, with placeholders where its rounding will be.

torch.onnx translates the network's operations. What it must not touch, weights and activation
quantizers, it sees as operators of a domain of their own, which
:mod:`~hast_lightning.export.onnx_rounding` replaces. So one graph serves for any bit widths.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from hast_lightning.config import DEFAULT_OPSET
from hast_lightning.core.outputs import is_container, named_leaves
from hast_lightning.errors import ConfigurationError, ModelError, first_line
from hast_lightning.export.frozen import FrozenActivation, FrozenWeight
from hast_lightning.export.program import export_program
from hast_lightning.export.timed_inputs import PICTURES, TIMESTEPS

if TYPE_CHECKING:
    import onnx

DOMAIN = "hast_lightning"
WEIGHT_OPERATOR = "Weight"
ROUND_OPERATOR = "Round"
NAME_ATTRIBUTE = "name"
FOUR_BITS_SINCE = DEFAULT_OPSET
"""The first opset with integers of 4 bits in QuantizeLinear and DequantizeLinear."""
INPUT, OUTPUT, BATCH_AXIS = "images", "logits", "batch"
WRITING, READING = ("onnx", "onnxscript", "onnxruntime"), ("onnxruntime",)
NOISY_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


def require_packages(names: tuple[str, ...]) -> None:
    """Refuse where a package for ONNX is not installed.

    Raises:
        ConfigurationError: one of ``names`` is missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        *others, last = missing
        named = f"{', '.join(others)} and {last}" if others else last
        raise ConfigurationError(
            f"ONNX needs {named}, which {'are' if others else 'is'} not installed: "
            "pip install 'hast-lightning[onnx]'"
        )


class _WeightPlaceholder(nn.Module):
    def __init__(self, name: str, shape: torch.Size) -> None:
        super().__init__()
        self.name, self.shape = name, shape

    def forward(self) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{WEIGHT_OPERATOR}",
            (),
            {NAME_ATTRIBUTE: self.name},
            dtype=torch.float32,
            shape=self.shape,
            version=1,
        )


class _RoundPlaceholder(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{ROUND_OPERATOR}",
            (x,),
            {NAME_ATTRIBUTE: self.name},
            dtype=torch.float32,
            shape=x.shape,
            version=1,
        )


def graph_with_placeholders(
    network: nn.Module, input_shape: tuple[int, int, int], opset: int = DEFAULT_OPSET
) -> onnx.ModelProto:
    """Return the graph of a network for batches (N, C, H, W) of any size.

    Args:
        network: frozen, folded or not, in which the name of a module of weights or of an
            activation quantizer becomes the attribute of its placeholder; or a network without
            any of these, which is translated as it is.
        input_shape: (C, H, W).
        opset: Of the domain of ONNX itself.

    Raises:
        ModelError: torch cannot translate the network, or not to this opset.
    """
    marked = copy.deepcopy(network)
    for name, module in list(marked.named_modules()):
        if isinstance(module, FrozenWeight):
            if module.group_size is not None:
                raise ModelError(
                    f"its weights have a scale for each {module.group_size} of a channel "
                    "(quantizer.group_size), for which ONNX files have no form here: packed and "
                    "program files hold them"
                )
            marked.set_submodule(name, _WeightPlaceholder(name, module.integers.shape))
        elif isinstance(module, FrozenActivation):
            marked.set_submodule(name, _RoundPlaceholder(name))
    return _translate(marked, input_shape, opset)


def _translate(
    network: nn.Module, input_shape: tuple[int, int, int], opset: int
) -> onnx.ModelProto:
    program = export_program(network, input_shape)
    try:
        with _quiet():
            translated = torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, verbose=False
            )
    except Exception as error:  # of an operation that it does not know, among others
        reason = first_line(error.__cause__ or error)
        raise ModelError(f"torch.onnx cannot translate the network: {reason}") from error
    assert translated is not None
    model: onnx.ModelProto = translated.model_proto
    _require_opset(model, opset)
    _tidy(model, _output_names(network))
    return model


def _output_names(network: nn.Module) -> list[str]:
    """Return the names of a network's outputs: those of several tensors, or that of logits."""
    graph = network.graph if isinstance(network, fx.GraphModule) else None
    output = None if graph is None else graph.output_node().args[0]
    if not is_container(output):
        return [OUTPUT]
    return [name for name, leaf in named_leaves(output) if leaf is not None]


def _require_opset(model: onnx.ModelProto, opset: int) -> None:
    """Refuse what torch.onnx leaves at another opset, of which it only logs."""
    (found,) = (entry.version for entry in model.opset_import if entry.domain == "")
    if found != opset:
        raise ModelError(
            f"export.opset={opset}: torch.onnx can translate this network to opset {found} only"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch.onnx says of its own parts."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tidy(model: onnx.ModelProto, outputs: list[str]) -> None:
    """Give plain names, without the places of the source on this machine that torch.onnx notes.

    Args:
        model: Of torch.onnx.
        outputs: Names of what it puts out, in order.
    """
    graph = model.graph
    names = [INPUT] if len(graph.input) == 1 else [PICTURES, TIMESTEPS]
    renamed = {each.name: name for each, name in zip(graph.input, names, strict=True)}
    if len(outputs) == 1:
        renamed[graph.output[0].name] = outputs[0]
    else:
        _name_outputs(graph, [f"{name}_" if name in names else name for name in outputs])
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = renamed.get(value.name, value.name)
        value.type.tensor_type.shape.dim[0].dim_param = BATCH_AXIS
    for described in (*graph.input, *graph.output, *graph.initializer, graph, model):
        del described.metadata_props[:]
        described.doc_string = ""
    # Shapes of inner values: the rounding would have to keep them up to date.
    del graph.value_info[:]
    graph.name = "student"


def _name_outputs(graph: onnx.GraphProto, names: list[str]) -> None:
    """Give each output its name by a node that passes a value on, which others may use, too."""
    from onnx import helper

    # Inner values that happen to be called so.
    inner = {name: f"{name}.inner" for name in names}
    for node in graph.node:
        node.input[:] = [inner.get(value, value) for value in node.input]
        node.output[:] = [inner.get(value, value) for value in node.output]
    for initializer in graph.initializer:
        initializer.name = inner.get(initializer.name, initializer.name)
    for output, name in zip(graph.output, names, strict=True):
        value = inner.get(output.name, output.name)
        graph.node.append(helper.make_node("Identity", [value], [name], name=f"{name}.output"))
        output.name = name
