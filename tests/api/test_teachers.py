"""Several teachers in one run: what the result and the folder say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hast_lightning import inspect, quantize
from hast_lightning.config import ModelConfig
from hast_lightning.errors import ConfigurationError, ModelError, UserError
from hast_lightning.models import zoo
from hast_lightning.records.folder import Origin, claim, reopen
from hast_lightning.records.result import Result
from hast_lightning.records.versions import versions
from hast_lightning.runs import pipeline
from tests.command_line import undisturbed_torch
from tests.composition import composed
from tests.small_calls import INPUT, SHORT, digits_network

WEIGHED = [
    *SHORT,
    *("export=none", "+stage@stages.weighing=weigh_teachers", "stages.weighing.source=bank"),
    *("stages.weighing.steps=3", "order=[synthesis,calibration,weighing,distillation]"),
]
SECOND = ("+model@teachers.second=digits", "teachers.second.pretrained=false")


def untrained() -> nn.Module:
    torch.manual_seed(3)
    config = ModelConfig(provider="digits", name="digits_resnet", pretrained=False)
    return zoo.load(config).network


# -- from Python --------------------------------------------------------------------------


def test_modules_teach_together_and_the_result_names_them(tmp_path: Path) -> None:
    quantized = quantize(
        digits_network(),
        4,
        teachers={"odd": untrained()},
        data="digits",
        overrides=WEIGHED,
        folder=tmp_path / "run",
        **INPUT,
    )
    result = quantized.result
    assert list(result.teachers) == ["model", "odd"]
    own, odd = result.teachers.values()
    assert own["checksum"] == result.model_checksum != odd["checksum"]
    assert own["weight"] > 0.5 > odd["weight"]
    assert result.agreement_on == "evaluation images, against 2 teachers together"
    written = Result.read(tmp_path / "run" / "result.json")
    assert written == result
    assert "Teaches, too: odd" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_they_teach_a_new_network_in_floating_point() -> None:
    few = ["sources.pool.size=16", "sources.pool.batch_size=8", "sources.pool.iterations=1"]
    made = quantize(
        digits_network(), method="coboosting", teachers=[untrained()], overrides=few, **INPUT
    )
    assert made.result is not None
    assert (set(made.bits.values()), made.activation_bits) == ({32}, {})
    assert (made.result.bits, list(made.result.teachers)) == ("float", ["model", "teacher1"])
    found = inspect("digits", method="coboosting")
    assert "student: a new network in floating point, drawn afresh by seed 0" in found.notes
    assert (found.quantizer, found.refusal) == ("nothing quantized", "")


def test_a_list_is_numbered_and_inspection_shows_who_teaches() -> None:
    found = inspect(digits_network(), 4, teachers=[untrained(), digits_network()], **INPUT)
    (line,) = [note for note in found.notes if note.startswith("teachers: ")]
    assert line.startswith("teachers: 3, of equal weight at first: model (")
    assert "teacher1 (teacher1, SHA-256 " in line and "teacher2 (" in line
    assert not any(note.startswith("teachers") for note in inspect("digits", 4).notes)


def test_a_named_network_may_be_taught_by_modules() -> None:
    found = inspect("digits", 4, teachers=[untrained()], overrides=SECOND)
    (line,) = [note for note in found.notes if note.startswith("teachers: ")]
    assert "second (digits_resnet, " in line and "teacher1 (" in line


@pytest.mark.parametrize(
    ("teachers", "told"),
    [
        ({"model": nn.Identity()}, "teachers: 'model' is no name"),
        ({"a.b": nn.Identity()}, "teachers: 'a.b' is no name"),
        (["resnet18"], "teachers: teacher1 is of type str, and has to be a module"),
        ("resnet18", "teachers=str must be a list of modules"),
        ([nn.Sequential(nn.Flatten(), nn.Linear(64, 7))], "has a number of classes of 7"),
    ],
)
def test_what_cannot_teach_is_refused(teachers: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        inspect(digits_network(), 4, teachers=teachers, **INPUT)
    assert told in str(caught.value) and "\n" not in str(caught.value)


# -- from the command line ----------------------------------------------------------------


def test_a_key_of_a_teacher_is_named_as_such() -> None:
    with pytest.raises(ConfigurationError, match=r"^teachers\.deep\.checkpoint is not set: resnet"):
        composed("+model@teachers.deep=resnet56_cifar10")
    with pytest.raises(ConfigurationError, match=r"^teachers\.model: a name is letters"):
        composed("+model@teachers.model=digits")


def test_weights_that_are_missing_are_said_to_be_a_teachers() -> None:
    words = ("+model@teachers.second=digits", "teachers.second.checkpoint=nowhere.pt")
    config = composed(*words)
    with pytest.raises(ModelError, match=r"^teachers\.second: .*nowhere"):
        zoo.load_all(config.model, config.teachers)


def test_the_checksum_of_a_run_covers_every_teacher(tmp_path: Path) -> None:
    config = composed(*WEIGHED, *SECOND, "report=false", "callbacks.checkpoint_every_n_steps=1")
    with undisturbed_torch():
        pipeline.run(config, tmp_path / "run", "command")
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(saved["teachers"]) == {"model", "second"}
    # The run had not come to its end, and the second teacher has other random weights since.
    (tmp_path / "run" / "result.json").unlink()
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("seed: 0\n", "seed: 5\n"))
    told = "was made with other weights of digits_resnet"
    with undisturbed_torch(), pytest.raises(ModelError, match=told):
        pipeline.resume(tmp_path / "run")


def test_a_folder_cannot_have_a_teachers_function_called(tmp_path: Path) -> None:
    own = ("factory=mine:build", "input_size=8", "mean=[0.5]", "std=[0.5]")
    words = ["+model@teachers.second=own", *(f"teachers.second.{word}" for word in own)]
    config = composed(*SHORT, *words)
    assert config.teachers["second"].name == "own:mine:build"
    claim(tmp_path / "run", config, Origin("command", None, versions()))
    with pytest.raises(ConfigurationError, match=r"trust=\[mine:build\]"):
        reopen(tmp_path / "run", versions())
    again, _ = reopen(tmp_path / "run", versions(), None, ("trust=[mine:build]",))
    assert again.teachers["second"].factory == "mine:build"
    with pytest.raises(ConfigurationError, match=r"trust=\[mine:build\]"):
        reopen(tmp_path / "run", versions(), None, ("trust=[mine:built]",))
