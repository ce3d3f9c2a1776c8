"""The first line of a command, and that each imports no more than it needs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hast_lightning import __version__
from hast_lightning.cli import start
from hast_lightning.cli.announcement import announcement
from hast_lightning.cli.plain import plain_prediction, predict_plainly
from tests.command_line import call
from tests.composition import composed
from tests.export.families import calibrated, family
from tests.export.test_packed import DESCRIPTION

HEAVY = ("lightning", "torchmetrics", "torchvision", "torch._dynamo", "sympy", "scipy", "onnx")
"""What takes seconds to import, beside torch."""


def run(code: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("quantizer.bits=4", "trainer=gpu"),
        ("quantizer=deploy", "trainer.accelerator=mps"),
        ("quantizer=deploy", "quantizer.bits=4"),
        ("quantizer.activation_bits=null",),
        ("method=coboosting",),
        ("quantizer.weight_bits=32", "quantizer.activation_bits=8"),
        ("+experiment=digits_w4a32",),
        ("+experiment=digits_w2a2",),
        ("+experiment=cifar10_resnet20_w4a4_quick", "model.pretrained=false", "data=none"),
        ("+experiment=mobilenetv2_w5a4", "quantizer.weight_bits=6", "data=none"),
        ("model=torchvision", "model.name=vgg11_bn", "method=gdfq"),
        ("+experiment=resnet18_w4a4", "model=digits", "data=none", "hydra.run.dir=here/it is"),
    ],
)
def test_the_line_says_what_hydra_makes_of_the_words(words: tuple[str, ...]) -> None:
    config = composed(*[word for word in words if not word.startswith("hydra")])
    line = announcement(words)
    assert line is not None
    bits = f"{config.quantizer.widths}{', mixed' * config.quantizer.mixed}"
    assert line.startswith(f"{config.model.name} to {bits}, on ")
    if config.trainer.accelerator != "auto":
        assert f", on {config.trainer.accelerator}, " in line
    folder = dict(word.split("=", 1) for word in words).get("hydra.run.dir")
    assert line.endswith(f"into {folder or f'outputs/{config.recipe}/<now>'}")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--help"], None),
        (["+experiment=digits_w2a2", "--cfg", "job"], None),
        (["--version"], None),
        (["command=predict", "artifact=a", "images=b"], None),
        (["command=inspect", "trainer=cpu"], "inspect, digits_resnet to W3A3, on cpu"),
        (["resume=outputs/x", "trainer=cpu"], "going on with outputs/x on cpu"),
        (
            ["-m", "quantizer.bits=2,3", "trainer=cpu"],
            "digits_resnet to 2,3, on cpu, into multirun/hast_digits_resnet_w3a3/<now>",
        ),
        (
            ["-m", "method=gdfq,hast", "quantizer.bits=choice(2,3)", "trainer=cpu"],
            "digits_resnet to choice(2,3), on cpu, into multirun/hast_digits_resnet_w3a3/<now>",
        ),
        (
            ["-m", "seed=0,1", "model.taps=[a,b]", "trainer=cpu"],
            "digits_resnet to W3A3, on cpu, into multirun/hast_digits_resnet_w3a3/<now>",
        ),
        (
            ["sweep=bits", "trainer=cpu"],
            "digits_resnet, on cpu, into multirun/hast_digits_resnet_w3a3/<now>",
        ),
        (
            ["sweep=seeds", "trainer=cpu"],
            "digits_resnet to W3A3, on cpu, into multirun/hast_digits_resnet_w3a3/<now>",
        ),
        (["sweep=none", "trainer=cpu", "hydra.run.dir=x"], "digits_resnet to W3A3, on cpu, into x"),
        (["command=estimate", "trainer=cpu"], "estimate, digits_resnet to W3A3, on cpu"),
        (["trainer=cpu", "hydra.run.dir="], "digits_resnet to W3A3, on cpu, into ."),
        (
            ["trainer=cpu", "hydra.run.dir=caf\udce9"],
            "digits_resnet to W3A3, on cpu, into caf\\udce9",
        ),
        (
            ["model=own", "model.factory=a:b", "trainer=cpu", "trainer.devices=2"],
            "a:b to W3A3, on 2 x cpu, into outputs/hast_a:b_w3a3/<now>",
        ),
        # Refused later, by who knows what there is.
        (["model=nowhere", "trainer=cpu", "hydra.run.dir=x"], "nowhere to W3A3, on cpu, into x"),
        (["+experiment=nowhere", "trainer=none", "hydra.run.dir=x", "quantizer=no"], None),
    ],
)
def test_other_lines(words: list[str], line: str | None) -> None:
    found = announcement(words)
    if words[0] == "+experiment=nowhere":
        assert found is not None and found.startswith("digits_resnet, on ")
    else:
        assert found == line


def test_the_line_comes_before_anything_that_takes_long(tmp_path: Path) -> None:
    """In CPU seconds, which do not depend on who else is busy."""
    code = (
        "import sys, time; from hast_lightning.cli import start; import builtins\n"
        "def shown(text, **_):\n"
        "    builtins.shown = text, time.process_time(), set(sys.modules)\n"
        "    raise KeyboardInterrupt\n"
        "start.print = shown\n"
        "try: start.main()\n"
        "except KeyboardInterrupt: pass\n"
        "text, seconds, modules = builtins.shown\n"
        "print(text, seconds < 0.5, modules & {'torch', 'hydra', 'omegaconf', 'numpy'}, sep='|')"
    )
    text, soon, loaded = run(code, "trainer=cpu", folder=tmp_path).stdout.strip().split("|")
    assert text.startswith(f"hast-lightning {__version__}: digits_resnet to W3A3, on cpu, into ")
    assert (soon, loaded) == ("True", "set()")


@pytest.mark.parametrize("rank", ["LOCAL_RANK", "SLURM_PROCID"])
def test_one_process_of_a_run_says_it(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hast_lightning.cli.main.main", lambda: None)
    monkeypatch.setattr(sys, "argv", ["hast-lightning"])
    start.main()
    assert capsys.readouterr().out.startswith(f"hast-lightning {__version__}: digits_resnet")
    monkeypatch.setenv(rank, "1")
    start.main()
    assert capsys.readouterr().out == ""


def test_an_interrupt_of_the_imports_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; from hast_lightning.cli import start\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting()); start.main()"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (finished.returncode, finished.stderr) == (130, "hast-lightning: interrupted\n")


LOADED = (
    "import sys; from hast_lightning.cli.start import main; main()\n"
    f"print([name for name in {HEAVY} if name in sys.modules])\n"
)


def test_inspecting_imports_no_lightning(tmp_path: Path) -> None:
    finished = run(LOADED, "command=inspect", folder=tmp_path)
    assert finished.stdout.splitlines()[-1] == "[]"
    assert "quantized layers: " in finished.stdout


def test_predicting_imports_no_lightning_and_gives_what_it_gives_elsewhere(tmp_path: Path) -> None:
    from hast_lightning.export.artifact import write_artifact
    from hast_lightning.export.frozen import freeze

    student = freeze(calibrated(family("cifar_resnet"), 8))
    write_artifact("packed", student, DESCRIPTION, tmp_path / "student.safetensors")
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    words = ("command=predict", "artifact=student.safetensors", "images=.")
    table = call(*words, folder=tmp_path).out.splitlines()
    assert len(table) == 3
    # What only Hydra can read goes through it, with the same end.
    quoted = ["command=predict", 'artifact="student.safetensors"', "images='.'"]
    code = f"{LOADED}sys.argv[1:] = {quoted}\n{LOADED}"
    plain = [*table, "[]"]
    assert run(code, *words, folder=tmp_path).stdout.splitlines() == [*plain, *plain]


@pytest.mark.parametrize(
    "words",
    [
        ("command=predict", "artifact=x.onnx", "images=nowhere"),
        ("command=predict", "artifact=x.safetensors", "images=.", "predictions=no/such/t.csv"),
        ("command=predict", "artifact=x.safetensors", "images=bad.png"),
    ],
)
def test_a_prediction_is_refused_as_it_is_elsewhere(
    tmp_path: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    save_file({"weight": torch.ones(1)}, tmp_path / "x.safetensors")
    expected = call(*words, folder=tmp_path)
    monkeypatch.setattr("hast_lightning.cli.main.main", lambda: pytest.fail("Hydra was asked"))
    monkeypatch.setattr(sys, "argv", ["hast-lightning", *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        start.main()
    assert end.value.code == expected.status == 2
    assert tuple(capsys.readouterr()) == (expected.out, expected.err)


@pytest.mark.parametrize(
    "words",
    [
        ["command=predict", "artifact=a"],
        ["command=predict", "artifact=a", "images=b", "seed=1"],
        ["command=predict", "artifact=a", "images=b", "images=c"],
        ["command=predict", "artifact=a", "images=007"],
        ["command=predict", "artifact=a", "images=null"],
        ["command=predict", "artifact=a", "images=b,c"],
        ["command=predict", "artifact=a", "images=größe"],
        ["command=predict", "artifact=a", "images=b", "-m"],
        ["command=predict", "artifact=a", "images=b", "--cfg", "job"],
        ["command=inspect", "artifact=a", "images=b"],
    ],
)
def test_other_lines_are_left_to_hydra(words: list[str]) -> None:
    assert plain_prediction(words) is None


@pytest.mark.parametrize(
    ("error", "fixable"), [(errno.EACCES, True), (errno.ENAMETOOLONG, True), (errno.EIO, False)]
)
def test_a_forbidden_path_of_a_prediction_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: int,
    fixable: bool,
) -> None:
    def forbid(*_: object) -> None:
        raise OSError(error, os.strerror(error), "locked/x")

    monkeypatch.setattr("hast_lightning.runs.prediction.predict", forbid)
    with pytest.raises(SystemExit if fixable else OSError) as end:
        predict_plainly({"artifact": "locked/x", "images": "."})
    if fixable:
        assert getattr(end.value, "code", None) == 2
        line = f"the folder or file locked/x cannot be used: {os.strerror(error)}\n"
        assert capsys.readouterr().err == f"hast-lightning: {line}"
