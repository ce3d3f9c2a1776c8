"""Writing and reading .onnx files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from hast_lightning.config import DEFAULT_OPSET
from hast_lightning.errors import ModelError, first_line
from hast_lightning.export.description import METADATA_KEY, Description
from hast_lightning.export.folding import fold_into_scales
from hast_lightning.export.onnx_graph import (
    READING,
    WRITING,
    graph_with_placeholders,
    require_packages,
)
from hast_lightning.export.timed_inputs import with_one_input, with_two_inputs

PRODUCER = "hast-lightning"


def write_onnx(
    network: fx.GraphModule, description: Description, path: Path, opset: int = DEFAULT_OPSET
) -> None:
    """Write a frozen network with QuantizeLinear and DequantizeLinear.

    A network that denoises takes ``pictures`` and ``timesteps`` there. Several outputs have their
    own names.

    Args:
        network: From :func:`~hast_lightning.export.frozen.freeze`.
        description: What the file says of itself.
        path: Ends in ``.onnx``.
        opset: Version of ONNX's operators. Before 21 there are no integers of 4 bits: weights of
            2 to 4 bits then take 8.

    Raises:
        ConfigurationError: a package that this needs is not installed.
        ModelError: torch cannot translate the network, or not to this opset.
    """
    require_packages(WRITING)
    import onnx

    from hast_lightning.export.onnx_rounding import round_graph

    folded = fold_into_scales(with_two_inputs(network, description))
    model = round_graph(graph_with_placeholders(folded, description.input_shape, opset), folded)
    model.producer_name, model.producer_version = PRODUCER, description.product_version
    onnx.helper.set_model_props(model, {METADATA_KEY: description.to_json()})
    path.write_bytes(model.SerializeToString())


def write_float_onnx(network: nn.Module, input_shape: tuple[int, int, int], path: Path) -> None:
    """Write a network in full precision, to compare with.

    Raises:
        ModelError: torch cannot translate the network.
    """
    path.write_bytes(graph_with_placeholders(network, input_shape).SerializeToString())


def read_onnx(path: Path) -> tuple[Callable[[Tensor], Any], Description]:
    """Return the network in a file that :func:`write_onnx` wrote, run by onnxruntime on the CPU.

    Returns:
        A function from images (N, C, H, W) to logits (N, classes), both on the CPU, or to several
        outputs in their container; and the file's description.

    Raises:
        ConfigurationError: onnxruntime is not installed.
        ModelError: the file is missing or damaged.
    """
    session, metadata = open_session(path)
    description = Description.from_metadata(metadata, str(path))
    several = description.outputs

    def network(*inputs: Tensor) -> Any:
        found = session(*inputs).values()
        if several is None:
            return next(iter(found))
        return several.build(dict(zip(several.names, found, strict=True)))

    return with_one_input(network, description), description


def open_session(path: Path) -> tuple[Callable[..., dict[str, Tensor]], dict[str, str]]:
    """Read any .onnx file, as :func:`read_onnx` does; inputs, outputs and metadata as they are."""
    require_packages(READING)
    import onnxruntime

    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # On processors without VNNI, products of 8-bit integers otherwise saturate at 16 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds, which have no public base class
        reason = first_line(error)
        raise ModelError(f"{path} is damaged or not for this onnxruntime: {reason}") from error
    names, outputs = (
        [each.name for each in some] for some in (session.get_inputs(), session.get_outputs())
    )

    def network(*inputs: Tensor) -> dict[str, Tensor]:
        given = {n: x.contiguous().numpy() for n, x in zip(names, inputs, strict=True)}
        found = map(torch.from_numpy, session.run(outputs, given))
        return dict(zip(outputs, found, strict=True))

    return network, session.get_modelmeta().custom_metadata_map
