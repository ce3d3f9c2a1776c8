"""Every format through the one door: written, opened, and refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hast_lightning.errors import ModelError
from hast_lightning.export.artifact import FORMATS, open_artifact
from hast_lightning.export.frozen import freeze
from tests.export.families import SHAPE, calibrated, family, noise
from tests.export.test_packed import DESCRIPTION


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_opened_by_its_suffix(name: str, tmp_path: Path) -> None:
    student = calibrated(family("cifar_resnet"), 4)
    path = tmp_path / f"student{FORMATS[name].suffix}"
    FORMATS[name].write(freeze(student), DESCRIPTION, path)
    network, description = open_artifact(path)
    images = noise(5, *SHAPE)
    logits = network(images)
    with torch.no_grad():
        expected = student(images)
    assert description == DESCRIPTION
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ModelError, match=r"fails on images of 2x1x32x32: "):
        network(noise(2, 1, 32, 32))


def test_another_suffix_is_refused_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "student.ckpt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"ends in none of \.safetensors, \.onnx, \.pt2"):
        open_artifact(tmp_path / "student.ckpt")


@pytest.mark.parametrize("suffix", [kind.suffix for kind in FORMATS.values()])
def test_a_missing_or_empty_file_is_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"student{suffix}"
    with pytest.raises(ModelError, match="does not exist"):
        open_artifact(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        open_artifact(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
