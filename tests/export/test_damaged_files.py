"""Files that were cut short, changed, or made to harm: one line each, and nothing is executed."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hast_lightning.errors import ModelError
from hast_lightning.export.artifact import FORMATS, open_artifact, write_artifact
from hast_lightning.export.frozen import freeze
from tests.export.families import SHAPE, calibrated, family, noise
from tests.export.test_packed import DESCRIPTION

CHANGES = 12


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One whole file a format."""
    folder = tmp_path_factory.mktemp("good")
    network = freeze(calibrated(family("cifar_resnet"), 4))
    paths = {name: folder / f"student{kind.suffix}" for name, kind in FORMATS.items()}
    for name, path in paths.items():
        write_artifact(name, network, DESCRIPTION, path)
    return paths


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        network, _ = open_artifact(path)
        network(noise(1, *SHAPE))
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short(
    good: dict[str, Path], name: str, share: float, tmp_path: Path
) -> None:
    data = good[name].read_bytes()
    path = tmp_path / good[name].name
    path.write_bytes(data[: int(len(data) * share)])
    refusal(path)


@pytest.mark.parametrize("name", FORMATS)
def test_changed_bytes_are_refused_or_change_numbers_alone(
    good: dict[str, Path], name: str, tmp_path: Path
) -> None:
    rng = random.Random(0)
    path = tmp_path / good[name].name
    for _ in range(CHANGES):
        data = bytearray(good[name].read_bytes())
        for _ in range(8):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            network, _ = open_artifact(path)
            logits = network(noise(1, *SHAPE))
        except ModelError as error:
            assert "\n" not in str(error)
        else:
            assert logits.shape == (1, DESCRIPTION.num_classes)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_under_another_suffix(good: dict[str, Path], name: str, tmp_path: Path) -> None:
    for other, kind in FORMATS.items():
        if other != name:
            path = tmp_path / f"student{kind.suffix}"
            path.write_bytes(good[name].read_bytes())
            refusal(path)


def test_an_onnx_file_from_elsewhere(tmp_path: Path) -> None:
    from hast_lightning.export.onnx_file import write_float_onnx

    path = tmp_path / "other.onnx"
    write_float_onnx(family("cifar_resnet"), SHAPE, path)
    assert "was not exported by hast-lightning" in refusal(path)


# --- torch.export programs, whose reader executes what a file tells it to ---------------------


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive; ``change`` gets an entry's name and content, none leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = change(entry.filename.partition("/")[2], old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return target


def with_model(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def apply(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        model = json.loads(content)
        change(model)
        return json.dumps(model).encode()

    return apply


def _call_another(model: dict[str, Any]) -> None:
    model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"


def _open_a_file(model: dict[str, Any]) -> None:
    model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def _guards(model: dict[str, Any]) -> None:
    model["guards_code"] = ["__import__('os').mkdir('harm')"]


def _symbol(model: dict[str, Any]) -> None:
    model["range_constraints"] = {"__import__('os')": {"min_val": 0, "max_val": 1}}


@pytest.mark.parametrize("harm", [_call_another, _open_a_file, _guards, _symbol])
def test_a_program_that_would_execute_code_is_refused(
    good: dict[str, Path],
    harm: Callable[[dict[str, Any]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewritten(good["program"], tmp_path / "student.pt2", with_model(harm))
    assert "refused: it " in refusal(path)
    assert not (tmp_path / "harm").exists()


def test_pickled_weights_are_refused(good: dict[str, Path], tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("_weights_config.json"):
            return content
        configuration = json.loads(content)
        for payload in configuration["config"].values():
            payload["use_pickle"] = True
        return json.dumps(configuration).encode()

    path = rewritten(good["program"], tmp_path / "student.pt2", change)
    assert "could execute code (a pickled tensor)" in refusal(path)


def test_pickled_example_inputs_are_never_loaded(good: dict[str, Path], tmp_path: Path) -> None:
    import pickle

    from tests.malicious import Payload

    harm = tmp_path / "harm"

    def change(name: str, content: bytes) -> bytes:
        return pickle.dumps(Payload(harm)) if name.startswith("data/sample_inputs") else content

    path = rewritten(good["program"], tmp_path / "student.pt2", change)
    network, _ = open_artifact(path)
    assert torch.isfinite(network(noise(1, *SHAPE))).all()
    assert not harm.exists()


def test_a_compiled_library_is_refused(good: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "student.pt2"
    path.write_bytes(good["program"].read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/aotinductor/model/model.so", b"\x7fELF")
    assert "model.so" in refusal(path)
