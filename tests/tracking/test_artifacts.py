from __future__ import annotations

from pathlib import Path
from typing import Any

from hast_lightning.tracking.artifacts import _log_file, run_files, sha256

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_files_are_known_by_their_suffix_and_the_samples_by_their_name(tmp_path: Path) -> None:
    for name in (
        "samples.safetensors",
        "student.safetensors",
        "export/student.onnx",
        "student.pt2",
        "last.ckpt",
        "config.yaml",
        ".student.onnx.1.partial.onnx",
        "wandb/offline-run/files/other.onnx",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {str(f.path.relative_to(tmp_path)): f.kind for f in run_files(tmp_path)}
    assert found == {
        "samples.safetensors": "samples",
        "student.safetensors": "packed-model",
        "export/student.onnx": "onnx-model",
        "student.pt2": "program",
    }


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert sha256(tmp_path / "a") == EMPTY
    (tmp_path / "b").write_text("b")
    assert sha256(tmp_path / "b") != EMPTY


class Run:
    """Stands for wandb's."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def log_artifact(self, artifact: Any) -> None:
        """Note the name."""
        self.names.append(artifact.name)


def test_names_of_any_length_become_names_that_wandb_takes(tmp_path: Path) -> None:
    (tmp_path / "student.onnx").write_bytes(b"a model")
    (file,) = run_files(tmp_path)
    run = Run()
    # What tells two long names apart may be in their last characters.
    for recipe in ("short", "x" * 117, "x" * 118, "x" * 130 + "a", "x" * 130 + "b"):
        _log_file(run, file, recipe, {})
    assert run.names[:2] == ["short-onnx-model", f"{'x' * 117}-onnx-model"]
    assert len(set(run.names)) == 5
    assert all(len(name) <= 128 and name.endswith("-onnx-model") for name in run.names)
