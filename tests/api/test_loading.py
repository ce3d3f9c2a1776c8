"""What QuantizedModel.load makes of everything that a run or somebody else may have left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hast_lightning import QuantizedModel, quantize
from hast_lightning.errors import ConfigurationError, DataError, ModelError
from tests.small_calls import SHORT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizedModel]:
    """The folder of a run, and what the run made."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, quantize("digits", (3, 4), overrides=SHORT, folder=folder)


def test_a_run_folder_has_one_and_its_result(run: tuple[Path, QuantizedModel]) -> None:
    folder, made = run
    assert (folder / "samples.safetensors").is_file()
    loaded = QuantizedModel.load(folder)
    images = torch.zeros(2, 1, 8, 8)
    assert torch.equal(loaded.predict(images).logits, made.predict(images).logits)
    assert loaded.result.teacher_agreement == made.result.teacher_agreement
    assert loaded.description == made.description
    assert QuantizedModel.load(str(folder / "student.safetensors")).description == made.description


def test_a_folder_with_several_or_none_is_refused(
    run: tuple[Path, QuantizedModel], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"no packed checkpoint: a run that is complete leaves"):
        QuantizedModel.load(tmp_path)
    for name in ("a", "b"):
        run[1].save(tmp_path / f"{name}.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"2 packed checkpoints, name one: a\.safetensors, b\."):
        QuantizedModel.load(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert QuantizedModel.load(tmp_path).description == run[1].description
    with pytest.raises(DataError, match=r"has no result"):
        _ = QuantizedModel.load(tmp_path).result


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("student.onnx", "is an ONNX file, for onnxruntime or `hast-lightning command=predict"),
        ("student.pt2", "is a torch.export program, for torch.export.load or"),
        ("last.ckpt", "is the checkpoint of a run, which goes on with `hast-lightning resume="),
        ("weights.pth", "is damaged or no safetensors file"),
        ("student.safetensors", "is damaged or no safetensors file"),
    ],
)
def test_another_file_is_called_what_it_is(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(ModelError, match=re.escape(message)) as refusal:
        QuantizedModel.load(tmp_path / name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["missing.onnx", "missing.safetensors", "missing"])
def test_a_missing_file_is_missing_whatever_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        QuantizedModel.load(tmp_path / name)


@pytest.mark.parametrize("path", [None, 3, b"student.safetensors"])
def test_what_is_no_path_is_refused(run: tuple[Path, QuantizedModel], path: Any) -> None:
    for call in (QuantizedModel.load, run[1].save, run[1].export_program):
        with pytest.raises(ConfigurationError, match="is no path"):
            call(path)


def test_the_home_folder_is_spelled_out(
    run: tuple[Path, QuantizedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run[1].save("~/mine.safetensors") == tmp_path / "mine.safetensors"
    assert QuantizedModel.load("~/mine.safetensors").description == run[1].description
