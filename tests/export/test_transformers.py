"""Vision transformers in every format: powers of two, factors and weights of one bit included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hast_lightning.export.description import Description
from hast_lightning.export.frozen import freeze
from hast_lightning.export.onnx_file import read_onnx, write_onnx
from hast_lightning.export.packed import read_packed, write_packed
from hast_lightning.export.program import read_program, write_program
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.equalization import equalized
from hast_lightning.quantization.fake_quant import recalibrate
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.quantization.transformer_placement import PSAQ, Transformer
from tests.transformers import CLASSES, SHAPE, images, pretrained

DESCRIPTION = Description(
    network="tiny",
    teacher_checksum="0" * 64,
    recipe="recipe",
    seed=0,
    quantizer={"name": "minmax", "weight_bits": 4},
    input_shape=SHAPE,
    num_classes=CLASSES,
    mean=(0.5,),
    std=(0.25,),
    resize_ratio=1.0,
)


@pytest.mark.parametrize(
    ("weights", "activations", "placement"),
    [
        (4, 4, Transformer()),
        pytest.param(8, 8, PSAQ(), marks=pytest.mark.slow),
        pytest.param(1, 8, Transformer(probabilities="uniform"), marks=pytest.mark.slow),
    ],
)
def test_every_file_answers_as_the_student(
    weights: int, activations: int, placement: Transformer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = equalized(pretrained(norm_first=False), per_tensor=False).network
    student = convert(network, QuantizerConfig(None, weights, activations, placement=placement))
    recalibrate(student, [images(32)])
    frozen = freeze(student)
    inputs = images(5)
    with torch.no_grad():
        expected = student(inputs)
        write_packed(frozen, DESCRIPTION, tmp_path / "student.safetensors")
        packed, _ = read_packed(tmp_path / "student.safetensors")
        torch.testing.assert_close(packed(inputs), expected, atol=1e-5, rtol=1e-5)
        write_program(frozen, DESCRIPTION, tmp_path / "student.pt2")
        program, _ = read_program(tmp_path / "student.pt2")
        torch.testing.assert_close(program(inputs), expected, atol=1e-4, rtol=1e-4)
        pytest.importorskip("onnxscript")
        write_onnx(frozen, DESCRIPTION, tmp_path / "student.onnx")
        session, _ = read_onnx(tmp_path / "student.onnx")
        # At 8 bits of symmetric weights engines compute in integers, as in test_every_format.py.
        allowed = 0.02 if placement.symmetric_weights else 1e-3
        assert (session(inputs) - expected).abs().max() < allowed * expected.abs().max()
