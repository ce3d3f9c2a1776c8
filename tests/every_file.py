"""What every file of a frozen student must answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from hast_lightning.export.description import Description
from hast_lightning.export.frozen import freeze
from hast_lightning.export.onnx_file import read_onnx, write_onnx
from hast_lightning.export.packed import read_packed, write_packed
from hast_lightning.export.program import read_program, write_program


def assert_every_file_answers(
    student: fx.GraphModule,
    inputs: Tensor,
    folder: Path,
    *,
    num_classes: int,
    onnx_tolerance: float = 1e-3,
) -> None:
    """Write the three files, read them, and compare their answers with the student's.

    Args:
        student: Calibrated.
        inputs: (N, C, H, W).
        folder: Where files go.
        num_classes: Of the network.
        onnx_tolerance: Of the largest answer.
    """
    channels = inputs.shape[1]
    frozen = freeze(student)
    described = Description(
        network="tiny",
        teacher_checksum="0" * 64,
        recipe="recipe",
        seed=0,
        quantizer={"name": "minmax", "weight_bits": 4},
        input_shape=tuple(inputs.shape[1:]),
        num_classes=num_classes,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        resize_ratio=1.0,
    )
    with torch.no_grad():
        expected = student(inputs)
        write_packed(frozen, described, folder / "student.safetensors")
        packed, _ = read_packed(folder / "student.safetensors")
        torch.testing.assert_close(packed(inputs), expected, atol=1e-5, rtol=1e-5)
        write_program(frozen, described, folder / "student.pt2")
        program, _ = read_program(folder / "student.pt2")
        torch.testing.assert_close(program(inputs), expected, atol=1e-4, rtol=1e-4)
        pytest.importorskip("onnxscript")
        write_onnx(frozen, described, folder / "student.onnx")
        session, _ = read_onnx(folder / "student.onnx")
        assert (session(inputs) - expected).abs().max() < onnx_tolerance * expected.abs().max()
