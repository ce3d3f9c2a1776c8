"""Bad input ends in one line and status 2, before any work, and harms nothing that is there."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from PIL import Image
from safetensors.torch import load_file, save_file

from hast_lightning import __version__
from hast_lightning.cli import main as cli
from hast_lightning.errors import USER_ERROR_STATUS, ConfigurationError, UserError
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.records.result import Result
from hast_lightning.runs import assembly
from hast_lightning.training.module import ZeroShotQuantization
from tests.command_line import CALIBRATION_STEPS, SYNTHESIS_STEPS, TINY, call, content
from tests.composition import options
from tests.malicious import Payload

SLOW = pytest.mark.slow
Refuse = Callable[..., str]
ENTRY_WITHOUT_LAYER = (
    "quantizer.overrides: layer is no key of an entry; an entry has: activation_bits, bits, "
    "layers, weight_bits"
)


def folders(place: Path) -> set[Path]:
    return {path for path in place.rglob("*") if path.is_dir()}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which ``earlier`` holds a finished run."""
    folder = tmp_path_factory.mktemp("earlier")
    assert call(*TINY, "hydra.run.dir=earlier", folder=folder).status == 0
    return folder


@pytest.fixture
def refused(earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Calls the command beside an earlier run; returns the one line that it ends with.

    No training may begin, and every file and folder stays as it was: those of the earlier run,
    those that the test handed in, and no others.
    """

    def train(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    def refuse(*arguments: str) -> str:
        before = content(earlier), content(tmp_path), folders(earlier)
        line = call(*TINY, *arguments, folder=earlier).refusal()
        assert (content(earlier), content(tmp_path), folders(earlier)) == before
        return line

    monkeypatch.setattr(Trainer, "fit", train)
    return refuse


# --- configuration: refused before anything is loaded ----------------------------------------


@pytest.fixture
def refused_unread(refused: Refuse, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """As ``refused``, and no network may be loaded either."""

    def load(*_: object) -> None:
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(assembly, "load_all", load)
    return refused


@pytest.mark.parametrize(("kind", "least", "bits"), [("weight", 1, 0), ("activation", 2, 9)])
def test_bits_out_of_range(refused_unread: Refuse, kind: str, least: int, bits: int) -> None:
    key = f"quantizer.{kind}_bits"
    assert (
        refused_unread(f"{key}={bits}")
        == f"{key}={bits} must be at least {least} and at most 8, or 32 for floating point"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            (),
            " is nothing to quantize, and the stage calibration, calibrate, is for a student that ",
        ),
        (("method=reconstruct",), " is nothing to quantize, and the stage calibration, calibrate"),
        (("method=coboosting", "quantizer=deploy"), " leaves nothing to quantizer.placement=integ"),
        (
            ("method=coboosting", "quantizer.equalize=true"),
            " leaves nothing to quantizer.equalize=",
        ),
        (("method=coboosting", "trainer.devices=2"), ": the BatchNorms of a new student learn in "),
    ],
)
def test_nothing_quantized(refused_unread: Refuse, words: tuple[str, ...], told: str) -> None:
    line = refused_unread(*words, "quantizer.bits=32")
    both = "quantizer.weight_bits=32 quantizer.activation_bits=32: both in floating point"
    assert line.startswith(f"{both}{told}")


ROOT = (
    "the root has: artifact, callbacks, command, compare, data, evaluate, export, images, logger, "
    "method, model, modules, order, predictions, quantizer, recipe, report, resume, runs, "
    "safeguard, schedule, seed, sources, stages, tags, task_name, teachers, trainer, trust"
)
QUANTIZER = (
    "quantizer has: activation_bits, bits, equalize, first_and_last_8bit, gradient, group_size, "
    "include_zero, momentum, overrides, per_tensor, placement, ranges, rounding, weight_bits"
)
KL = "stages.distillation.terms.kd has: enabled, output, reduction, temperature, weight"


@pytest.mark.parametrize(
    ("override", "key", "known"),
    [
        ("modell=digits", "modell", ROOT),
        ("modell.name=digits", "modell", ROOT),
        ("+epochs=3", "epochs", ROOT),
        ("quantizer.wait_bits=3", "quantizer.wait_bits", QUANTIZER),
        ("+quantizer.wait_bits=3", "quantizer.wait_bits", QUANTIZER),
        ("++quantizer.wait_bits=3", "quantizer.wait_bits", QUANTIZER),
        ("stages.distillation.terms.kd.wieght=3", "stages.distillation.terms.kd.wieght", KL),
        ("+stages.distillation.terms.kd.wieght=3", "stages.distillation.terms.kd.wieght", KL),
        ("sources.bank.sise=3", "sources.bank.sise", "lr, min_lr, patience, size, start"),
        ("quantizer.ranges.lr=3", "quantizer.ranges.lr", "quantizer.ranges has: lr_multiplier"),
    ],
)
def test_an_unknown_group_or_key(
    refused_unread: Refuse, override: str, key: str, known: str
) -> None:
    line = refused_unread(override)
    assert line.startswith(f"{key} is no key of the configuration; ")
    assert line.endswith(known)


def test_an_unknown_key_that_is_nearly_right(refused_unread: Refuse) -> None:
    line = refused_unread("stages.distillation.terms.kd.wieght=3")
    assert "; did you mean weight; " in line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "stages.distillation.terms.kdd.weight=3",
            "stages.distillation.terms.kdd has no part; did",
        ),
        (
            "+stages.distillation.terms.x.weight=3",
            "stages.distillation.terms.x has no part; +term@",
        ),
        ("+stages.distillation.terms.x={weight: 3}", "stages.distillation.terms.x has no part; +t"),
        ("stages.distilation.steps=3", "stages.distilation has no part; did you mean distillation"),
        (
            "+sources.other.load=x",
            "sources.other has no part; +source@sources.other=... adds one o",
        ),
        (
            "stages.distillation.terms.kd=kl",
            "stages.distillation.terms.kd: a part is chosen by its",
        ),
        ("quantizer.ranges=mse", "quantizer.ranges: a part is chosen by its group, ranges@quantiz"),
        (
            "+term@stages.distillation.terms.x=nope",
            "term=nope: nope is no option of term; it has: ",
        ),
        (
            "+term@stages.distilation.terms.x=kl",
            "In 'term/kl': stages.distilation has no part; did",
        ),
        (
            "term@stages.distillation.terms.x=kl",
            "term@stages.distillation.terms.x: there is nothin",
        ),
        (
            "term@stages.distillation.terms.kd=cross_entropy",
            "In 'method/hast': stages.distillation.terms.kd.temperature is no key of the",
        ),
        (
            "~term@stages.distillation.terms.kd",
            "In 'method/hast': stages.distillation.terms.kd has no part; +term@st",
        ),
        (
            "stages.distillation.terms.kd.kind=bns",
            "stages.distillation.terms.kd.kind=bns: it is of",
        ),
        ("~stages.distillation.terms.kdd", "Could not delete from config. 'stages.distillation.te"),
        ("stages.distillation.hook.x=3", "a key was set below one that is null: choose the group"),
    ],
)
def test_a_part_that_is_not_there(refused_unread: Refuse, override: str, line: str) -> None:
    assert refused_unread(override).startswith(line)


def test_a_key_of_another_part_tells_how_a_part_is_exchanged(refused_unread: Refuse) -> None:
    line = refused_unread("term@stages.distillation.terms.kd=cross_entropy")
    assert re.search(r"; it is a key of ([a-z_]+, )*kl\b", line)
    assert line.endswith("and take this one out, ~stages.distillation.terms.kd")


def test_settings_without_their_part_tell_how_both_are_left_out(refused_unread: Refuse) -> None:
    line = refused_unread("~term@stages.distillation.terms.kd")
    assert line.endswith("; ~stages.distillation.terms.kd leaves out what is set there")


def test_an_unknown_part_tells_how_ones_own_are_made_known(refused_unread: Refuse) -> None:
    line = refused_unread("+term@stages.distillation.terms.x=nope")
    assert line.endswith("; modules=[package.module] makes your own known")


@pytest.mark.parametrize(
    ("override", "group"),
    [
        ("+experiment=zebra", "experiment"),
        ("+experiment=3", "experiment"),
        ("model=resnet21", "model"),
        ("model=21", "model"),
        ("quantizer=", "quantizer"),
        ("schedule=alternate", "schedule"),
        ("method=disk", "method"),
        ("data=mnist", "data"),
        ("trainer=tpu", "trainer"),
        ("logger=mlflow", "logger"),
        ("callbacks=loud", "callbacks"),
        ("export=tflite", "export"),
    ],
)
def test_an_unknown_option_of_a_group(refused_unread: Refuse, override: str, group: str) -> None:
    line = refused_unread(override)
    option = override.partition("=")[2]
    assert line.startswith(f"{group}={option}: {option or 'nothing'} is no option of {group}; ")
    listed = line.partition("it has: ")[2].partition(";")[0]
    assert set(options(group)) <= set(listed.replace(",", " ").split())


def test_an_option_that_is_nearly_right(refused_unread: Refuse) -> None:
    line = refused_unread("+experiment=digits_w3a")
    assert line.startswith("experiment=digits_w3a: digits_w3a is no option of experiment; did you ")
    assert "did you mean digits" in line
    line = refused_unread("model=resnet34")
    assert "did you mean resnet50, resnet18; it has: " in line
    assert "by model=torchvision model.name=resnet34" in line


@pytest.mark.parametrize(
    ("override", "choices"),
    [
        ("quantizer.gradient=exact", "clipped, pass_through"),
        ("trainer.precision=16-true", "16-mixed, 32-true, auto, bf16-mixed"),
        ("data.source=mnist", "cifar10, digits, given, imagenet, none, npz, wav"),
        ("stages.distillation.optimizer.name=lamb", "adam, adamw, sgd"),
        ("export.formats=[tflite]", "onnx, packed, program"),
    ],
)
def test_an_unknown_choice_of_a_value(refused_unread: Refuse, override: str, choices: str) -> None:
    line = refused_unread(override)
    key, _, value = override.partition("=")
    assert line.startswith(f"{key}=")
    assert value.strip("[]").rpartition(",")[2] in line
    assert choices in line


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("quantizer.weight_bits=three", "'three' of type 'str' could not be converted to Integer"),
        ("quantizer.weight_bits=3.5", "'3.5' of type 'float' could not be converted to Integer"),
        ("quantizer.momentum=null", "is not Optional"),
        ("quantizer.momentum=high", "'high' of type 'str' could not be converted to Float"),
        ("quantizer.include_zero=perhaps", "'perhaps' is not a valid bool (type str)"),
        ("stages.distillation.learning_rate=3", "int is not a subclass of LearningRate"),
        ("order=synthesis", "str is not a ListConfig, list or tuple"),
        ("stages.distillation.terms=3", "Cannot assign int to Dict[str, Term]"),
        ("model.name=[digits]", "Cannot convert 'list' to string"),
        ("seed=-1", "seed=-1 must be at least 0 and at most 4294967295"),
        ("stages.distillation.optimizer.lr=nan", "lr=nan must be greater than 0 and at most 1e+30"),
        ("sources.bank.lr=1e38", "lr=1e+38 must be greater than 0 and at most 1e+30"),
        ("trainer.devices=0", "trainer.devices=0 must be at least 1"),
    ],
)
def test_a_value_of_the_wrong_type_or_range(
    refused_unread: Refuse, override: str, reason: str
) -> None:
    line = refused_unread(override)
    assert override.partition("=")[0] in line
    assert reason in line


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("quantizer.weight_bits=[2", "'quantizer.weight_bits=[2' cannot be read"),
        ("quantizer.weight_bits", "'quantizer.weight_bits' is no setting: expected key=value"),
        ("compare", "is no setting: expected key=value or group=option; did you mean command=comp"),
        ("+schedule=quick", "schedule has an option already: schedule=... without the plus"),
        ("=3", "must be a string or a list"),
        ("quantizer.weight_bits=2,3", "lists several values: -m runs a job for each"),
        ("experiment=digits_w3a3", "use +experiment=digits_w3a3"),
        ("~quantizer.weight_bits", "cannot be taken away, it can only be changed"),
        ("~stages.distillation.optimizer", "cannot be taken away, it can only be changed"),
        ("~stages.calibration.terms", "switched off one by one by <name>.enabled=false"),
        ("~logger", "logger is not set"),
        ("model=torchvision", "model.name is not set"),
        ("model=torchvision task_name=mine", "model.name is not set"),
        *(
            (f"{plus}quantizer.overrides=[{{layer: conv1, weight_bits: 8}}]", ENTRY_WITHOUT_LAYER)
            for plus in ("", "+", "++")
        ),
        ("seed=${seeed}", "Interpolation key 'seeed' not found"),
        (
            "recipe=mine",
            "recipe=mine: a recipe is taken by +experiment=mine, or by recipe='mine' in Python; "
            "task_name=mine is what the run is called",
        ),
        ("task_name=${oc.env:HAST_NO_SUCH_VARIABLE}", "'HAST_NO_SUCH_VARIABLE' not found"),
    ],
)
def test_malformed_overrides(refused_unread: Refuse, override: str, reason: str) -> None:
    words = override.split(" ") if " task_name" in override else [override]
    assert reason in refused_unread(*words)


def test_an_unknown_key_of_an_entry_in_a_file(refused_unread: Refuse, tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    text = "# @package _global_\nquantizer: {overrides: [{layer: conv1, weight_bits: 8}]}\n"
    (folder / "mine.yaml").write_text(text)
    line = refused_unread(f"hydra.searchpath=[file://{tmp_path}]", "+experiment=mine")
    assert line == f"In 'experiment/mine': {ENTRY_WITHOUT_LAYER}"


# tests/test_config.py has more.
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["model.checkpoint=w.th", "model.pretrained=false"],
            "model.checkpoint=w.th with model.pretrained=false: the file would not be read",
        ),
        (
            ["quantizer.bits=4", "quantizer.activation_bits=5"],
            "quantizer.bits=4 quantizer.activation_bits=5: bits is both; leave one of them out",
        ),
        (["model.depth=20"], "model.depth=20: only model.provider=cifar_resnet has a depth"),
        (["data=none", "data.path=x.npz"], "data.path=x.npz: data=none reads no files"),
        (["data.path=x.npz"], "data.path=x.npz: data=digits reads no files"),
    ],
)
def test_contradictions(refused_unread: Refuse, arguments: list[str], line: str) -> None:
    assert refused_unread(*arguments).startswith(line)


def test_an_accelerator_that_does_not_exist(refused_unread: Refuse) -> None:
    line = refused_unread("trainer.accelerator=abacus")
    assert line.startswith("trainer.accelerator=abacus ")
    assert {"auto", "cpu", "cuda"} <= set(line.replace(",", " ").replace(".", " ").split())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a device")
@pytest.mark.parametrize(
    ("accelerator", "reason"),
    [
        ("gpu", "No supported gpu backend found"),
        ("cuda", "can not run on your system"),
        ("mps", "can not run on your system"),
    ],
)
def test_a_device_that_is_not_there(refused_unread: Refuse, accelerator: str, reason: str) -> None:
    line = refused_unread("trainer=gpu", f"trainer.accelerator={accelerator}")
    assert line.startswith(f"trainer.accelerator={accelerator} trainer.devices=1")
    assert reason in line


# --- the folder of a refused run -------------------------------------------------------------

REFUSED = "data.path=x.npz"  # data=digits reads no files


def paths(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


@pytest.mark.parametrize(
    "arguments", [(REFUSED,), (REFUSED, "hydra.run.dir=a/b/c"), ("resume=no_such_run",)]
)
def test_a_refused_run_leaves_no_folder(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for full_error in ("0", "1"):
        with contextlib.suppress(UserError):
            assert call(*arguments, folder=tmp_path, full_error=full_error).status == 2
        assert paths(tmp_path) == set()


def test_folders_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "outputs" / "other").mkdir(parents=True)
    call(REFUSED, folder=tmp_path).refusal()
    call(REFUSED, "hydra.run.dir=empty", folder=tmp_path).refusal()
    call(REFUSED, "hydra.run.dir=empty/made", folder=tmp_path).refusal()
    assert paths(tmp_path) == {"empty", "outputs", "outputs/other"}


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("hydra.output_subdir=.hydra",), {"new/.hydra/config.yaml"}),
        (("hydra/job_logging=default",), {"new/hast_lightning.log"}),
        (("hydra.job.chdir=true",), {"new/notes"}),
    ],
)
def test_whoever_asks_hydra_for_files_of_its_own_has_them_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], left: set[str]
) -> None:
    def write(_: object) -> None:
        if "hydra.job.chdir=true" in words:
            Path("notes").touch()
        raise ConfigurationError("refused")

    monkeypatch.setattr(cli, "run_job", write)
    call("hydra.run.dir=new", *words, folder=tmp_path).refusal()
    assert {"new", *left} <= paths(tmp_path)
    assert all(path.startswith("new") for path in paths(tmp_path))


def test_a_run_knows_its_folder_which_is_not_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning starts processes with what Hydra says of it."""
    seen: list[str] = []

    def look(_: object) -> None:
        settings = HydraConfig.get()
        seen.extend([settings.run.dir, settings.runtime.output_dir])

    monkeypatch.setattr(cli, "run_job", look)
    assert call("hydra.run.dir=new", folder=tmp_path).status == 0
    assert seen == [str(tmp_path / "new")] * 2
    assert paths(tmp_path) == set()


# --- configuration files of one's own --------------------------------------------------------

PLANTED = """\
# @package _global_
defaults:
  - override /model: digits
  - _self_
recipe: planted
"""


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (PLANTED + "quantizer: {weight_bits: 3", ["planted.yaml", "line 6"]),
        (PLANTED + "\tseed: 1\n", ["planted.yaml", "line 6", "'\\t'"]),
        (PLANTED + "quantizer: {wait_bits: 3}\n", ["experiment/planted", QUANTIZER]),
        (PLANTED + "quantizer: {weight_bits: four}\n", ["experiment/planted", "four", "Integer"]),
        (PLANTED + "quantizer: {weight_bits: 9}\n", ["weight_bits=9 must be at least 1 and at"]),
        (
            PLANTED + "quantizer: 4\n",
            ["experiment/planted", "int is not a subclass of QuantizerConfig"],
        ),
        (PLANTED.replace("digits", "resnet21"), ["model=resnet21", *options("model")]),
        (PLANTED.replace("model", "modell"), ["experiment/planted", "modell"]),
        ("\x00\x01", ["planted.yaml", "unacceptable character"]),
    ],
    ids=["open brace", "tab", "key", "type", "range", "no group", "option", "group", "binary"],
)
def test_a_file_of_the_configuration(
    refused_unread: Refuse, tmp_path: Path, text: str, parts: list[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "planted.yaml").write_text(text)
    line = refused_unread("+experiment=planted", f"hydra.searchpath=[file://{tmp_path}]")
    for part in parts:
        assert part in line


# --- run folders -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["result.json", "config.yaml", "last.ckpt", "samples.safetensors"])
def test_a_folder_that_holds_a_run(refused_unread: Refuse, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("of an earlier run")
    line = refused_unread(f"hydra.run.dir={tmp_path}")
    used = f"hydra.run.dir={tmp_path} already holds a run ({name}): choose another folder"
    # A finished run has nothing to go on with.
    on = f", or go on with that run by resume={tmp_path}"
    assert line == used + ("" if name == "result.json" else on)


def test_the_folder_of_a_finished_run(refused_unread: Refuse) -> None:
    assert "hydra.run.dir=" in (line := refused_unread("hydra.run.dir=earlier"))
    assert "already holds a run (result.json)" in line


def test_a_run_folder_that_cannot_be_made(refused_unread: Refuse, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        line = refused_unread(f"hydra.run.dir={folder}")
        assert line == f"hydra.run.dir={folder} cannot be made: {file} is a file and no folder"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that not even root writes")
def test_a_run_folder_that_cannot_be_written_to(refused: Refuse) -> None:
    line = refused("hydra.run.dir=/proc/self")
    assert line.startswith("hydra.run.dir=/proc/self cannot be written to (")


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG])
def test_a_path_that_the_system_forbids(
    refused_unread: Refuse, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    exists = Path.exists

    def forbid(path: Path, **options: bool) -> bool:
        if "locked" in path.parts:
            raise OSError(error, os.strerror(error), str(path))
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", forbid)
    line = refused_unread("hydra.run.dir=locked/x")
    assert line.endswith(f"/locked/x cannot be used: {os.strerror(error)}")


def test_a_name_that_is_too_long(refused_unread: Refuse, tmp_path: Path) -> None:
    line = refused_unread(f"hydra.run.dir={tmp_path}/{'x' * 300}")
    assert line.endswith("xxx cannot be used: File name too long")


# --- networks --------------------------------------------------------------------------------


def test_a_network_without_batch_norm(refused: Refuse) -> None:
    network = ("model=torchvision", "model.name=squeezenet1_1", "model.pretrained=false")
    line = refused(*network, "data=none", "model.input_size=32")
    assert line.startswith("the network squeezenet1_1 has no BatchNorm with running statistics")


def _resnet(classes: int = 10) -> dict[str, torch.Tensor]:
    return CifarResNet(8, classes).state_dict()


def _halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _truncated_pickle(path: Path) -> None:
    torch.save(_resnet(), path)
    _halved(path)


def _with_code(path: Path) -> None:
    torch.save({**_resnet(), "linear.weight": Payload(path.with_name("created"))}, path)


# Each way to fail once; tests/models/test_checkpoints.py has them all.
CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "does not exist; expected a .safetensors file or a torch state"),
    "truncated": (_truncated_pickle, "is damaged or of another format"),
    "other classes": (
        lambda path: torch.save(_resnet(classes=100), path),
        "is for 100 classes, the network for 10: set model.num_classes=100",
    ),
    "code": (_with_code, "is refused: it asks for posix.mkdir, and reading it could"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint(refused: Refuse, tmp_path: Path, kind: str) -> None:
    write, reason = CHECKPOINTS[kind]
    path = tmp_path / "w.th"
    write(path)
    small = ("model=resnet20_cifar10", "model.depth=8", "data=none")
    line = refused(*small, f"model.checkpoint={path}")
    assert line.startswith(f"the weights file {path} {reason}")
    assert not (tmp_path / "created").exists()


def test_the_code_in_that_checkpoint_is_real(tmp_path: Path) -> None:
    """Or the test above would find nothing executed whatever happened."""
    _with_code(tmp_path / "w.th")
    torch.load(tmp_path / "w.th", weights_only=False)
    assert (tmp_path / "created").is_dir()


def test_a_number_of_classes_that_the_bundled_weights_do_not_have(refused: Refuse) -> None:
    assert "is for 10 classes, the network for 7" in refused("model.num_classes=7")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch would keep MobileNetV2's weights; there is no way to download them."""

    def download(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / "mobilenet_v2-7ebf99e0.pth"


def test_published_weights_that_cannot_be_downloaded(refused: Refuse, cache: Path) -> None:
    line = refused("+experiment=mobilenetv2_w3a3")
    assert line.startswith(f"the weights {cache.name} are not in {cache.parent} and could not be ")
    assert "no route to host" in line
    assert "model.pretrained=false" in line


# --- evaluation data -------------------------------------------------------------------------

IMAGES, LABELS = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6)


def _npz(**arrays: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        np.savez(path, **{"x": IMAGES, "y": LABELS, **arrays})

    return write


def _objects(path: Path) -> None:
    np.savez(path, x=np.array([Payload(path.with_name("created"))], dtype=object), y=LABELS)


# Each way to fail once; tests/data/test_evaluation.py has them all.
NPZ: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: None, "does not exist; expected an .npz file"),
    "code": (_objects, "cannot be read: it holds Python objects"),
    "size": (_npz(x=IMAGES[:, :7]), "x has images of 7x8 pixels (height x width); the network"),
    "label too high": (_npz(y=LABELS + 5), "y has labels from 5 to 10; the network knows 0 to 9"),
}


@pytest.mark.parametrize("kind", NPZ)
def test_evaluation_data(refused: Refuse, tmp_path: Path, kind: str) -> None:
    write, reason = NPZ[kind]
    path = tmp_path / "images.npz"
    write(path)
    line = refused("data=npz", f"data.path={path}")
    assert line.startswith(f"data.path={path}")
    assert reason in line
    assert not (tmp_path / "created").exists()


# tests/sources/test_own_images.py and tests/data have the other ways to fail.
def test_own_pictures(refused: Refuse, tmp_path: Path) -> None:
    line = refused("source@sources.bank=images", f"sources.bank.path={tmp_path / 'absent'}")
    assert line.startswith(
        f"sources.bank.path={tmp_path / 'absent'} does not exist; expected a folder of pictures"
    )


PHOTOGRAPHS = (
    "model=resnet20_cifar10",
    "model.pretrained=false",
    "model.depth=8",
    "data=imagenet",
)


def test_a_folder_of_photographs_that_is_missing(refused: Refuse) -> None:
    line = refused(*PHOTOGRAPHS)
    assert line.startswith(
        "data.path=data/imagenet/val is not a folder; expected one folder per cl"
    )


def test_classes_without_photographs_in_a_short_line(refused: Refuse, tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"n{number:08}").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "n00000000" / "0.png")
    classes = ("model.num_classes=1000", "model.class_names=null")
    line = refused(*PHOTOGRAPHS, *classes, f"data.path={tmp_path}")
    assert "has no images in 999 of 1000 class folders, the first of them n00000001" in line
    assert len(line) < 400


def test_photographs_for_a_network_that_sees_no_colours(refused: Refuse, tmp_path: Path) -> None:
    line = refused("data=imagenet", f"data.path={tmp_path}")
    assert line == "data=imagenet has photographs of 3 channels; the network takes 1"


# --- samples and schedules that do not fit ---------------------------------------------------


def test_saved_samples(refused: Refuse, earlier: Path, tmp_path: Path) -> None:
    samples = earlier / "earlier" / "samples.safetensors"
    load = f"sources.bank.load={tmp_path / 'samples.safetensors'}"
    assert refused(load) == f"{load}: there is no such file"
    (tmp_path / "samples.safetensors").write_bytes(samples.read_bytes()[:-100])
    assert refused(load).startswith(f"{load}: not a readable safetensors file, perhaps truncated")
    save_file(load_file(samples), tmp_path / "samples.safetensors")
    assert refused(load) == f"{load}: format is None, not 'hast-lightning/image-bank'"
    (tmp_path / "samples.safetensors").write_bytes(samples.read_bytes())
    other = ("model=resnet20_cifar10", "model.pretrained=false", "model.depth=8", "data=none")
    line = refused(*other, load)
    assert line.startswith(f"{load}: ")
    assert "(64, 1, 8, 8)" in line
    assert "3, 32, 32)" in line


# Each kind once; tests/stages/test_stages.py has them all.
STAGES: list[tuple[tuple[str, ...], str]] = [
    (("order=[distillation]",), "order: stages.distillation trains the student, which no stage"),
    (("source@sources.bank=images",), "sources.bank.path is not set: point it at a folder"),
    (
        ("~stages.synthesis.terms.bns", "~stages.synthesis.terms.hard_cross_entropy"),
        "stages.synthesis.terms: none has a weight, so nothing is improved for",
    ),
    (
        ("method=hast_alternating", "stages.alternation.synthesis.steps=9"),
        "stages.alternation.synthesis.steps=9: both steps are done in every iteration, as often",
    ),
]


@pytest.mark.parametrize(("words", "line"), STAGES)
def test_stages_and_sources_that_do_not_go_together(
    refused: Refuse, words: tuple[str, ...], line: str
) -> None:
    assert refused(*words).startswith(line)


def test_a_run_that_would_do_nothing(refused: Refuse, earlier: Path) -> None:
    samples = earlier / "earlier" / "samples.safetensors"
    line = refused("order=[synthesis]", f"sources.bank.load={samples}")
    assert line == "order=['synthesis']: none of these stages has a step, so nothing would be done"
    line = refused(
        "quantizer.bits=32",
        "order=[synthesis,distillation]",
        "stages.distillation.steps=0",
        "stages.distillation.terms.alignment.enabled=false",
        "stages.distillation.transforms.promotion.enabled=false",
    )
    assert line == (
        "order=['synthesis', 'distillation']: none of the stages that change the student has a "
        "step; raise stages.distillation.steps, or leave it out of order"
    )


# --- training that diverges ------------------------------------------------------------------

SGD = ("stages.distillation.optimizer.name=sgd", "stages.distillation.optimizer.lr=1e30")
# Gradients so large that one step leaves float32.
OVERFLOWING = (*SGD, "stages.distillation.terms.kd.weight=1e20")
EVERY_STEP = "callbacks.checkpoint_every_n_steps=1"
ADVICE = "lower the learning rate or the loss weights; what was saved before is kept"


@pytest.fixture
def diverged(earlier: Path, tmp_path: Path) -> Refuse:
    """Calls the command in an empty run folder; returns the line without the advice it ends in.

    The run has no result, and the earlier run is as it was.
    """

    def diverge(*arguments: str) -> str:
        before = content(earlier)
        run = f"hydra.run.dir={tmp_path}"
        line = call(*TINY, EVERY_STEP, *arguments, run, folder=earlier).refusal()
        assert content(earlier) == before
        assert not (tmp_path / "result.json").exists()
        assert line.endswith(f": {ADVICE}")
        return line.removesuffix(f": {ADVICE}")

    return diverge


def _iteration_of_good_checkpoint(run: Path) -> int:
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        # Before the calibration has ended there are no ranges.
        if isinstance(value, torch.Tensor) and (checkpoint["ranges_frozen"] or "quant" not in name):
            assert value.isfinite().all(), name
    return int(checkpoint["iteration"])


def test_a_student_that_diverges(diverged: Refuse, tmp_path: Path) -> None:
    line = diverged(*SGD)
    assert line == "the distillation loss became nan at step 2 of 3 of stage distillation"
    assert _iteration_of_good_checkpoint(tmp_path) == SYNTHESIS_STEPS + CALIBRATION_STEPS + 1
    # What was logged before is there, below the names of the columns.
    with (tmp_path / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(SYNTHESIS_STEPS + CALIBRATION_STEPS + 1))
    assert load_file(tmp_path / "samples.safetensors")["images"].isfinite().all()


def _student(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("student.")}


def test_weights_that_overflow_are_not_saved(
    diverged: Refuse, earlier: Path, tmp_path: Path
) -> None:
    line = diverged(*OVERFLOWING)
    assert line.startswith("student.")
    assert line.endswith(" became NaN or infinite at step 1 of 3 of stage distillation")
    assert _iteration_of_good_checkpoint(tmp_path) == SYNTHESIS_STEPS + CALIBRATION_STEPS
    # The student is as it was at the end of the stage before.
    saved = _student(tmp_path / "last.ckpt")
    before = _student(earlier / "earlier" / "last.1.ckpt")
    assert saved.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in saved.items())


@pytest.mark.parametrize(
    "words", [("report=false", "callbacks.checkpoint_every_n_steps=1000"), ("report=true",)]
)
def test_a_last_step_that_overflows_is_no_end(
    diverged: Refuse, tmp_path: Path, words: tuple[str, ...]
) -> None:
    unmeasured = ("evaluate=false", "export=none")
    line = diverged(*OVERFLOWING, "schedule.student_steps=1", *unmeasured, *words)
    assert line.endswith(" became NaN or infinite at step 1 of 1 of stage distillation")
    assert _iteration_of_good_checkpoint(tmp_path) == SYNTHESIS_STEPS + CALIBRATION_STEPS
    assert not (tmp_path / "samples.png").exists()


def test_a_student_that_only_the_evaluation_finds_out(
    diverged: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are finite, what it computes with them is not."""
    step = ZeroShotQuantization.training_step

    def last_step_ruins(module: ZeroShotQuantization, batch: Any, batch_idx: int) -> None:
        step(module, batch, batch_idx)
        if module.iteration == module.agenda.iterations:
            for parameter in module.student.parameters():
                torch.nn.init.constant_(parameter, 1e38)

    monkeypatch.setattr(ZeroShotQuantization, "training_step", last_step_ruins)
    line = diverged()
    assert (
        line == "the student puts out NaN or infinite logits at step 3 of 3 of stage distillation"
    )
    assert (tmp_path / "samples.safetensors").exists()


def test_images_that_diverge(diverged: Refuse, tmp_path: Path) -> None:
    line = diverged("sources.bank.lr=1e30")
    assert line.startswith("the synthesis loss became ")
    assert line.endswith(" at step 2 of 6 of stage synthesis")
    assert _iteration_of_good_checkpoint(tmp_path) == 1
    assert not (tmp_path / "samples.safetensors").exists()


def test_a_calibration_that_diverges(diverged: Refuse, tmp_path: Path) -> None:
    line = diverged("sources.calibration.lr=1e30")
    assert line == "the calibration loss became nan at step 2 of 2 of stage calibration"
    assert _iteration_of_good_checkpoint(tmp_path) == SYNTHESIS_STEPS + 1


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (("sources.generator.lr=1e30",), "the calibration loss became nan at step 2 of 2 of stage"),
        (
            [word.replace("stages.", "stages.alternation.") for word in SGD],
            "the distillation loss became nan at step 2 of 3 of stage alternation",
        ),
    ],
    ids=["generator", "student"],
)
def test_an_alternating_run_that_diverges(
    diverged: Refuse, wrong: Sequence[str], expected: str
) -> None:
    assert diverged("method=hast_alternating", *wrong).startswith(expected)


def test_what_was_saved_before_can_be_used(diverged: Refuse, tmp_path: Path) -> None:
    diverged(*SGD)
    load = f"sources.bank.load={tmp_path / 'samples.safetensors'}"
    again = f"hydra.run.dir={tmp_path / 'again'}"
    assert call(*TINY, load, again, folder=tmp_path).status == 0
    assert Result.read(tmp_path / "again" / "result.json").student_steps == 3


# --- a process of its own --------------------------------------------------------------------

MISSING = "does not exist; expected a .safetensors file or a torch state dict (model.checkpoint)"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seed=-1", "seed=-1 must be at least 0 and at most 4294967295"),
        # Behind the loading of torch and Lightning, which have much to say.
        pytest.param("model.checkpoint=w.th", f"the weights file w.th {MISSING}", marks=SLOW),
    ],
)
@pytest.mark.timeout(600)  # most of which is loading torch on a busy machine
def test_a_real_process_writes_that_line_alone(earlier: Path, word: str, line: str) -> None:
    before = content(earlier)
    finished = subprocess.run(
        [sys.executable, "-m", "hast_lightning", *TINY, word],
        cwd=earlier,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == USER_ERROR_STATUS
    assert finished.stdout == (
        f"hast-lightning {__version__}: digits_resnet to W3A3, on cpu, into "
        "outputs/hast_digits_resnet_w3a3/<now>\n"
    )
    assert finished.stderr == f"hast-lightning: {line}\n"
    assert content(earlier) == before
