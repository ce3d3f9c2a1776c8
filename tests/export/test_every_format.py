"""Exported files compute what the student computes: every format, family and bit width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hast_lightning.config import FORMATS as FORMATS_OF_CONFIGURATION
from hast_lightning.export.artifact import FORMATS, open_artifact, write_artifact
from hast_lightning.export.frozen import freeze
from hast_lightning.quantization.placement import Integer
from hast_lightning.quantization.settings import LayerBits
from tests.export.families import FAMILIES, SHAPE, calibrated, family, noise
from tests.export.test_packed import DESCRIPTION

IMAGES = 32
DEPLOY: dict[str, Any] = {"placement": Integer(), "include_zero": True}
# One cheap case of everything peculiar: a max-pool behind 4-bit integers, grids without zero in
# them, squeeze-and-excite, integers of the engine's own (at 5 bits without, at 8 with its bias).
QUICK = (
    ("resnet", 3, {}),
    ("mobilenet_v3", 4, {}),
    ("cifar_resnet", 5, DEPLOY),
    ("cifar_resnet", 8, DEPLOY),
    # What is left in floating point: activations, weights, and layers alone.
    ("mobilenet_v2", 4, {"activation_bits": 32}),
    ("cifar_resnet", 8, {**DEPLOY, "activation_bits": 32}),
    ("cifar_resnet", 32, {"activation_bits": 5}),
    ("cifar_resnet", 32, {**DEPLOY, "activation_bits": 8}),
    ("cifar_resnet", 8, {**DEPLOY, "overrides": [LayerBits("layer2.0.conv1", bits=32)]}),
)
MEDIAN_DEVIATION = 1e-5
"""Of an image's logits, relative to the largest logit. A value next to the border between two
roundings may fall to the other side in another engine, and an image then deviates by steps:
that is rare, and so the median is that of sums in another order."""
MEDIAN_DEVIATION_IN_INTEGERS = 0.02
"""The same at 8 bits, where the engine computes in integers and rounds biases, which the student
does not."""


def deviations(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).abs().amax(dim=1) / expected.abs().max()


def check_onnx(
    name: str, bits: int, options: dict[str, Any], folder: Path, opset: int = 21
) -> None:
    student = calibrated(family(name), bits, **options)
    path = folder / "student.onnx"
    write_artifact("onnx", freeze(student), DESCRIPTION, path, opset)
    images = noise(IMAGES, *SHAPE, seed=5)
    with torch.no_grad():
        expected = student(images)
    found = open_artifact(path)[0](images)
    deviation = deviations(found, expected)
    assert deviation.median() < (MEDIAN_DEVIATION if bits < 8 else MEDIAN_DEVIATION_IN_INTEGERS)
    # Random weights leave some images undecided; those that are decided stay so.
    best = expected.topk(2, dim=1).values
    decided = (best[:, 0] - best[:, 1]) > 0.1 * expected.abs().max()
    agreeing = found.argmax(dim=1) == expected.argmax(dim=1)
    assert int((~agreeing & decided).sum()) <= 1
    # A network that says nearly the same of all images may decide none: then every logit counts.
    assert decided.any() or deviation.max() < MEDIAN_DEVIATION_IN_INTEGERS / 2


def test_the_configuration_has_every_format() -> None:
    assert tuple(FORMATS) == FORMATS_OF_CONFIGURATION


@pytest.mark.parametrize(("name", "bits", "options"), QUICK)
def test_onnxruntime_computes_what_the_student_does(
    name: str, bits: int, options: dict[str, Any], tmp_path: Path
) -> None:
    check_onnx(name, bits, options, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, DEPLOY], ids=["minmax", "deploy"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", FAMILIES)
def test_onnxruntime_computes_what_the_student_does_everywhere(
    name: str, bits: int, options: dict[str, Any], tmp_path: Path
) -> None:
    check_onnx(name, bits, options, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(18, 24))
def test_every_opset_that_is_allowed(opset: int, tmp_path: Path) -> None:
    import onnx

    check_onnx("resnet", 3, {}, tmp_path, opset)
    (entry,) = onnx.load(tmp_path / "student.onnx").opset_import
    assert entry.version == opset


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("shufflenet_v2", 3),
        *(
            pytest.param(name, bits, marks=pytest.mark.slow)
            for name in FAMILIES
            for bits in range(2, 9)
        ),
    ],
)
def test_a_program_computes_exactly_what_the_student_does(
    name: str, bits: int, tmp_path: Path
) -> None:
    student = calibrated(family(name), bits)
    path = tmp_path / "student.pt2"
    write_artifact("program", freeze(student), DESCRIPTION, path)
    images = noise(5, *SHAPE, seed=5)
    with torch.no_grad():
        expected = student(images)
    torch.testing.assert_close(open_artifact(path)[0](images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["onnx", "program"])
def test_ranges_without_zero_are_not_passed_on_wrong(name: str, tmp_path: Path) -> None:
    student = calibrated(family("cifar_resnet"), 4)
    for number, (_, quantizer) in enumerate(sorted(_quantizers(student).items())):
        # Neither contains zero: all of it above, and all of it below.
        low, high = (0.5, 2.0) if number % 2 else (-2.0, -0.25)
        quantizer.set_range(torch.tensor(low), torch.tensor(high))
        assert not 0 <= float(quantizer.zero_point) <= 15
    path = tmp_path / f"student{FORMATS[name].suffix}"
    write_artifact(name, freeze(student), DESCRIPTION, path)
    images = noise(IMAGES, *SHAPE, seed=5)
    with torch.no_grad():
        expected = student(images)
    assert deviations(open_artifact(path)[0](images), expected).median() < 1e-4


def _quantizers(student: torch.nn.Module) -> dict[str, Any]:
    from hast_lightning.quantization.fake_quant import ActivationQuantizer

    return {n: m for n, m in student.named_modules() if isinstance(m, ActivationQuantizer)}


@pytest.mark.parametrize("per_tensor", [False, True], ids=["per channel", "per tensor"])
def test_four_bits_take_four_and_integer_engines_find_what_they_fuse(
    per_tensor: bool, tmp_path: Path
) -> None:
    import onnx
    import onnxruntime
    from onnx import TensorProto

    student = calibrated(family("cifar_resnet"), 4, per_tensor=per_tensor)
    write_artifact("onnx", freeze(student), DESCRIPTION, tmp_path / "w4.onnx")
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "w4.onnx").graph.initializer}
    assert {TensorProto.INT4, TensorProto.UINT4} & types

    student = calibrated(family("cifar_resnet"), 8, **DEPLOY, per_tensor=per_tensor)
    write_artifact("onnx", freeze(student), DESCRIPTION, tmp_path / "w8.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "w8.onnx", options, ["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    convolutions = sum(
        node.op_type == "Conv" for node in onnx.load(tmp_path / "w8.onnx").graph.node
    )
    assert kinds.count("QLinearConv") == convolutions > 0
    assert "Conv" not in kinds
