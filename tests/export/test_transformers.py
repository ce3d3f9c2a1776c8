"""Vision transformers in every format: powers of two, factors and weights of one bit included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.equalization import equalized
from hast_lightning.quantization.fake_quant import recalibrate
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.quantization.transformer_placement import PSAQ, Transformer
from tests.every_file import assert_every_file_answers
from tests.transformers import CLASSES, images, pretrained


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
    # At 8 bits of symmetric weights engines compute in integers, as in test_every_format.py.
    assert_every_file_answers(
        student,
        images(5),
        tmp_path,
        num_classes=CLASSES,
        onnx_tolerance=0.02 if placement.symmetric_weights else 1e-3,
    )
