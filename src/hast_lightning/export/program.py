"""The torch.export program (.pt2): the frozen network as a graph of ATen operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from hast_lightning.core.outputs import Outputs, named_leaves
from hast_lightning.errors import ModelError, first_line
from hast_lightning.export.description import METADATA_KEY, Description
from hast_lightning.export.program_archive import clean_copy
from hast_lightning.export.timed_inputs import inputs_in_files, with_one_input, with_two_inputs

BATCH = "batch"
EXAMPLE_IMAGES = 2
"""torch.export takes a batch of one for a network that only ever sees one image."""


def export_program(network: nn.Module, input_shape: tuple[int, int, int]) -> ExportedProgram:
    """Return the program of ``network`` for batches of any size.

    Args:
        network: Of one input, or of the two that a network that denoises has in files.
        input_shape: (C, H, W), with the timestep as last channel of the latter.

    Raises:
        ModelError: torch.export cannot take the network, or not with batches of any size.
    """
    inputs = inputs_in_files(network, input_shape, EXAMPLE_IMAGES)
    sizes = tuple({0: Dim(BATCH)} for _ in inputs)
    try:
        with torch.no_grad():
            return torch.export.export(network, inputs, dynamic_shapes=sizes)
    except Exception as error:  # whatever the network's code raises when it meets fake tensors
        raise ModelError(f"torch.export cannot take the network: {first_line(error)}") from error


class _PlainContainers(nn.Module):
    """A graph whose outputs come in Python's containers, and not in those of torch.fx."""

    def __init__(self, network: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, images: Tensor) -> Any:
        return self.outputs.build(dict(named_leaves(self.network(images))))


def write_program(network: fx.GraphModule, description: Description, path: Path) -> None:
    """Write a frozen network as a program; ``path`` ends in ``.pt2``.

    That of a network that denoises takes pictures and timesteps apart.

    Raises:
        ModelError: as :func:`export_program`.
    """
    split = with_two_inputs(network, description)
    plain = split if description.outputs is None else _PlainContainers(split, description.outputs)
    program = export_program(plain, description.input_shape)
    for node in program.graph.nodes:
        # Where this machine keeps the source is nobody's business.
        node.meta.pop("stack_trace", None)
    # That two inputs have as many samples is checked by code, which no reader here accepts.
    program._guards_code = []
    torch.export.save(program, path, extra_files={METADATA_KEY: description.to_json()})


def read_program(path: Path) -> tuple[Callable[[Tensor], Any], Description]:
    """Return the network in a file that :func:`write_program` wrote, and its description.

    ``torch.export.load`` unpickles where a file tells it to, and evaluates text as code; so only
    a copy of the file in which there is nothing of the kind is given to it.

    Raises:
        ModelError: the file is missing or damaged, is no such program, or asks for anything
            that could execute code.
    """
    copy, metadata = clean_copy(path)
    description = Description.from_metadata(metadata, str(path))
    try:
        program = torch.export.load(copy)
        network: nn.Module = program.module()
    except Exception as error:  # damaged content ends in nearly any kind of exception there
        reason = first_line(error)
        raise ModelError(f"{path} is damaged or of another version of torch: {reason}") from error
    return with_one_input(network, description), description
