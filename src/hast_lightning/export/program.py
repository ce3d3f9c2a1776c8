"""The torch.export program (.pt2): the frozen network as a graph of ATen operations."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from hast_lightning.core.network import example_inputs
from hast_lightning.errors import ModelError
from hast_lightning.export.description import METADATA_KEY, Description
from hast_lightning.export.program_archive import clean_copy

BATCH = "batch"
EXAMPLE_IMAGES = 2
"""torch.export takes a batch of one for a network that only ever sees one image."""


def export_program(network: nn.Module, input_shape: tuple[int, int, int]) -> ExportedProgram:
    """Return the program of ``network`` for batches of any size.

    Raises:
        ModelError: torch.export cannot take the network, or not with batches of any size.
    """
    images = example_inputs(EXAMPLE_IMAGES, input_shape)
    try:
        with torch.no_grad():
            return torch.export.export(network, (images,), dynamic_shapes=({0: Dim(BATCH)},))
    except Exception as error:  # whatever the network's code raises when it meets fake tensors
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelError(f"torch.export cannot take the network: {reason}") from error


def write_program(network: fx.GraphModule, description: Description, path: Path) -> None:
    """Write a frozen network as a program; ``path`` ends in ``.pt2``.

    Raises:
        ModelError: as :func:`export_program`.
    """
    program = export_program(network, description.input_shape)
    for node in program.graph.nodes:
        # Where this machine keeps the source is nobody's business.
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path, extra_files={METADATA_KEY: description.to_json()})


def read_program(path: Path) -> tuple[nn.Module, Description]:
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
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelError(f"{path} is damaged or of another version of torch: {reason}") from error
    return network, description
