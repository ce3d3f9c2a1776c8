"""Every kind of convolution: from the float network to files that compute as the student does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hast_lightning.export.artifact import FORMATS, open_artifact, write_artifact
from hast_lightning.export.folding import fold_into_scales
from hast_lightning.export.frozen import freeze
from hast_lightning.export.parity import prove
from hast_lightning.quantization.placement import Integer
from tests.convolution_kinds import CLASSES, KINDS, SHAPE, network_of
from tests.export.families import calibrated, noise
from tests.export.test_packed import DESCRIPTION

DEPLOY: dict[str, Any] = {"placement": Integer(), "include_zero": True}
OURS = replace(
    DESCRIPTION,
    input_shape=SHAPE,
    num_classes=CLASSES,
    mean=(0.5,) * SHAPE[0],
    std=(0.5,) * SHAPE[0],
    class_names=None,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_every_weight_of_the_student(kind: str) -> None:
    student = calibrated(network_of(kind), 4, images=noise(8, *SHAPE))
    before = {name: value.clone() for name, value in student.named_parameters()}
    images, labels = noise(8, *SHAPE, seed=2), torch.arange(8) % CLASSES
    F.cross_entropy(student(images), labels).backward()
    torch.optim.SGD(student.parameters(), 0.1).step()
    weights = [name for name in before if name.endswith("weight")]
    still = [n for n in weights if torch.equal(before[n], dict(student.named_parameters())[n])]
    assert weights
    assert not still


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norms_fold_into_the_scales(kind: str) -> None:
    student = calibrated(network_of(kind), 4, images=noise(8, *SHAPE))
    folded = fold_into_scales(freeze(student))
    left = [layer for layer in folded.modules() if "BatchNorm" in type(layer).__name__]
    images = noise(8, *SHAPE, seed=2)
    assert not left
    deviation = (folded(images) - student(images)).abs().amax(dim=1)
    assert float(deviation.detach().median()) < 1e-5


def check_file(kind: str, format_name: str, options: dict[str, Any], folder: Path) -> None:
    bits = 8 if options else 4
    student = calibrated(network_of(kind), bits, images=noise(8, *SHAPE), **options)
    path = (folder / "student").with_suffix(FORMATS[format_name].suffix)
    write_artifact(format_name, freeze(student), OURS, path)
    parity = prove(format_name, open_artifact(path)[0], student, [noise(64, *SHAPE)], SHAPE)
    assert parity.images == 64


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_file_agrees_with_the_student(kind: str, tmp_path: Path) -> None:
    check_file(kind, "packed", {}, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_file_for_integers_agrees_with_the_student(kind: str, tmp_path: Path) -> None:
    check_file(kind, "onnx", DEPLOY, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, DEPLOY], ids=["simulated", "integer"])
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_agrees_with_the_student(
    kind: str, format_name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    check_file(kind, format_name, options, tmp_path)
