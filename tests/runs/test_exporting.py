"""The stage ``export`` of a run: what it leaves, what it measures, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import nn

from hast_lightning.config import Config
from hast_lightning.errors import ConfigurationError, ExportError
from hast_lightning.export.artifact import open_artifact
from hast_lightning.export.frozen import FrozenActivation
from hast_lightning.export.parity import Parity, prove
from hast_lightning.records.result import ExportRecord, Result
from hast_lightning.runs import exporting as artifacts
from hast_lightning.runs import pipeline
from tests.command_line import undisturbed_torch
from tests.small_runs import small

FEW = ("data.source=none", "data.holdout=0.1")
ALL = "export.formats=[program,onnx,packed]"
FILES = {"packed": "student.safetensors", "onnx": "student.onnx", "program": "student.pt2"}


pytestmark = pytest.mark.usefixtures("undisturbed_torch")


def config(*overrides: str) -> Config:
    return small("report=false", *overrides)


def exported(folder: Path) -> set[str]:
    """Names of exported files, hidden ones included."""
    return {path.name for path in folder.iterdir() if "student" in path.name}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that left all three files."""
    folder = tmp_path_factory.mktemp("everything")
    with undisturbed_torch():
        pipeline.run(config(ALL), folder, "typed")
    return folder


def test_every_file_is_there_and_was_run_on_the_evaluation_images(everything: Path) -> None:
    result = Result.read(everything / "result.json")
    assert exported(everything) == set(FILES.values())
    assert list(result.exports) == list(FILES)
    for name, record in result.exports.items():
        assert record.keys() == ExportRecord.__annotations__.keys()
        assert record["file"] == FILES[name]
        assert record["bytes"] == (everything / FILES[name]).stat().st_size
        assert record["images"] == result.evaluated_images == 599
        assert record["agreement"] >= 99.8
        assert record["compared"] > record["images"]
        assert record["deviation"] < 1e-3
        assert record["milliseconds"] > 0 and record["float_milliseconds"] > 0
    assert result.exports["packed"]["largest_logit_difference"] == 0
    assert result.exports["onnx"]["engine"].startswith("onnxruntime ")
    assert not list(everything.glob(".*"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_where_it_comes_from(everything: Path, name: str) -> None:
    network, description = open_artifact(everything / FILES[name])
    result = Result.read(everything / "result.json")
    assert description.teacher_checksum == result.model_checksum
    assert (description.recipe, description.seed) == (result.recipe, 0)
    assert description.quantizer["weight_bits"] == 3
    assert description.quantizer["ranges"] == {"kind": "minmax"}
    assert network(torch.zeros(2, *description.input_shape)).shape == (2, 10)


def test_without_data_the_held_out_images_are_what_a_file_is_run_on(tmp_path: Path) -> None:
    result = pipeline.run(config(*FEW, "export.formats=[packed]"), tmp_path, "typed")
    assert result is not None
    assert result.exports["packed"]["images"] == result.evaluated_images == 6
    # So few say little: others are drawn.
    assert result.exports["packed"]["compared"] == 256


def test_a_limit_on_the_images(tmp_path: Path) -> None:
    result = pipeline.run(
        config("export.images=300", "data.batch_size=256", "export.formats=[packed]"),
        tmp_path,
        "typed",
    )
    assert result is not None
    assert result.exports["packed"]["images"] == 300


def test_a_student_in_another_memory_format_is_compared_in_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where convolutions would add in another order, and a few images of a thousand differ."""
    compared: list[bool] = []

    def spy(name: str, exported: Any, student: nn.Module, *args: Any, **kwargs: Any) -> Parity:
        compared.extend(weight.is_contiguous() for weight in student.parameters())
        return prove(name, exported, student, *args, **kwargs)

    monkeypatch.setattr(artifacts, "prove", spy)
    settings = config("trainer.channels_last=true", "export.formats=[packed]")
    result = pipeline.run(settings, tmp_path, "typed")
    assert result is not None
    assert result.exports["packed"]["largest_logit_difference"] == 0
    assert compared and all(compared)


def test_no_file_where_none_is_wanted(tmp_path: Path) -> None:
    result = pipeline.run(config("export.formats=[]"), tmp_path, "typed")
    assert result is not None
    assert result.exports == {}
    assert exported(tmp_path) == set()


def test_a_file_that_does_not_agree_is_an_error_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result stands, and so do the files that agree."""
    write = artifacts.write_artifact

    def write_wrongly(name: str, network: Any, *arguments: Any) -> None:
        if name == "program":
            for module in network.modules():
                if isinstance(module, FrozenActivation):
                    module.scale.mul_(0.2)
        write(name, network, *arguments)

    monkeypatch.setattr(artifacts, "write_artifact", write_wrongly)
    message = (
        r"the program file predicts .* on .* of 599 images only, .*leads by [\d.]+ at most on the "
        r"others, and by [\d.]+ on the median image\. The file was removed"
    )
    with pytest.raises(ExportError, match=message):
        pipeline.run(config("export.formats=[packed,program]"), tmp_path, "typed")
    assert exported(tmp_path) == {FILES["packed"]}
    result = Result.read(tmp_path / "result.json")
    assert list(result.exports) == ["packed"]
    assert result.quantized_top1 is not None


def test_a_file_of_other_logits_is_an_error_where_the_classes_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank of six held-out images, all of which the file gets right."""
    write = artifacts.write_artifact

    def write_wrongly(name: str, network: Any, *arguments: Any) -> None:
        network.get_submodule("linear").bias[0] -= 1
        write(name, network, *arguments)

    monkeypatch.setattr(artifacts, "write_artifact", write_wrongly)
    monkeypatch.setattr(Parity, "agrees", lambda *_: True)
    message = r"the packed file puts out other logits .* on the median of 256 images one differs by"
    with pytest.raises(ExportError, match=message):
        pipeline.run(config(*FEW, "export.formats=[packed]"), tmp_path, "typed")
    assert exported(tmp_path) == set()


def test_a_run_that_is_stopped_while_it_exports_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_artifact", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config("export.formats=[packed]"), tmp_path, "typed")
    assert not (tmp_path / "result.json").exists()
    result = pipeline.resume(tmp_path)
    assert result is not None
    assert result.resumes == 1
    assert exported(tmp_path) == {FILES["packed"]}


@pytest.fixture
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(Trainer, "fit", train)


@pytest.mark.usefixtures("_no_training")
def test_a_missing_package_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(ConfigurationError, match=r"ONNX needs onnxscript.*hast-lightning\[onnx\]"):
        pipeline.run(config("export.formats=[onnx]"), tmp_path / "run", "typed")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_no_training")
def test_a_network_that_a_format_cannot_hold_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hast_lightning.export import architecture

    monkeypatch.setattr(architecture, "LAYERS", {})
    with pytest.raises(ConfigurationError, match=r"packed cannot hold .* choose export=none"):
        pipeline.run(config("export.formats=[packed]"), tmp_path / "run", "typed")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export.formats=[tflite]"], "is not one of: onnx, packed, program"),
        (["export.formats=[onnx,onnx]"], "names a format twice"),
        (["export.opset=17"], "export.opset=17 must be at least 18 and at most 23"),
        (["export.opset=24"], "export.opset=24 must be at least 18 and at most 23"),
        (["export.images=0"], "export.images=0 must be at least 1"),
        (["export.min_agreement=101"], "export.min_agreement=101"),
        (["export.max_deviation=-1"], "export.max_deviation=-1.0 must be at least 0"),
        (["evaluate=false", "export.formats=[onnx]"], "evaluate=false with export.formats: every"),
    ],
)
def test_values_that_are_not_allowed(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small(*overrides)
