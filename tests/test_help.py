"""What ``--help`` says is so, and shells complete what it names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hast_lightning.cli import main as cli
from hast_lightning.config import config_folder, to_object
from hast_lightning.config.root import COMMANDS
from hast_lightning.core.part import parts
from tests.command_line import Finished, call
from tests.composition import composed_raw, options

SCREEN = (42, 80)
"""Lines and columns."""
KINDS = ("what is done", "with what", "parts of a method", "where and what for")

SLOW = pytest.mark.slow  # a process each that starts a shell and composes


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return call("--help", folder=tmp_path_factory.mktemp("help"))


def section(text: str, title: str) -> list[str]:
    """The lines of a section, without the blank ones."""
    _, _, behind = text.partition(f"== {title} ==\n")
    return [line for line in behind.partition("\n== ")[0].splitlines() if line]


def test_the_first_line_says_what_it_is_for(shown: Finished) -> None:
    assert (shown.status, shown.err) == (0, "")
    first = shown.out.splitlines()[0]
    assert first.startswith("hast-lightning quantizes a pretrained network")
    assert "Hydra" not in first


def test_every_command_is_named(shown: Finished) -> None:
    named = [line.split()[0] for line in section(shown.out, "Commands")]
    assert {name.removeprefix("command=") for name in named if "command=" in name} == set(COMMANDS)
    assert "resume=RUN_FOLDER" in named


def test_every_example_composes_and_is_allowed(shown: Finished) -> None:
    examples = section(shown.out, "Examples")
    assert 5 <= len(examples) <= 8
    for example in examples:
        # The remark begins behind two spaces.
        name, *words = shlex.split(example.split("  ")[0])
        assert name == "hast-lightning"
        first_job = [word.split(",")[0] for word in words if word not in cli.SWEEP_FLAGS]
        to_object(composed_raw(*first_job))


def test_it_fits_on_a_screen_and_holds_no_placeholder(shown: Finished) -> None:
    lines = shown.out.rstrip().splitlines()
    assert len(lines) <= SCREEN[0]
    assert [line for line in lines if len(line) > SCREEN[1]] == []
    assert "$" not in shown.out


def test_every_group_is_named(shown: Finished) -> None:
    named = " ".join(section(shown.out.partition("Pages on all")[0], "Groups"))
    for kind in KINDS:
        named = named.replace(kind, "")
    words = set(re.sub(r"\(.*?\)", "", named).replace(",", " ").split())
    folders = {path.name for path in config_folder().iterdir() if path.is_dir()}
    assert words == (folders | set(parts())) - {"hydra"}


def test_groups_and_recipes_are_listed(tmp_path: Path) -> None:
    finished = call("--help", "groups", folder=tmp_path)
    assert (finished.status, finished.err) == (0, "")
    groups = dict(line.split(": ") for line in section(finished.out, "Groups") if ": " in line)
    assert groups["experiment"].split(", ") == options("experiment")
    for group in ("model", "quantizer", "sweep", "logger", "export"):
        assert groups[group].split(", ") == options(group)


@pytest.mark.parametrize("flag", ["--help", pytest.param("-h", marks=SLOW)])
def test_keys_are_as_the_rest_of_the_line_leaves_them(tmp_path: Path, flag: str) -> None:
    for words, bits in (
        (("keys",), 3),
        (("keys", "quantizer.bits=2"), 2),
        (("trainer=cpu",), None),
    ):
        finished = call("+experiment=digits_w3a3", flag, *words, folder=tmp_path)
        assert finished.status == 0, finished.err
        shown = section(finished.out, "Keys")
        if bits is None:
            assert shown == []
        else:
            key = "  weight_bits: 3" if bits == 3 else f"  bits: {bits}"
            assert key in shown
    assert list(tmp_path.iterdir()) == []


def test_the_help_of_hydra_is_still_there(tmp_path: Path) -> None:
    finished = call("--hydra-help", folder=tmp_path)
    assert finished.status == 0
    assert "hydra/launcher: basic" in finished.out


# --- completion ------------------------------------------------------------------------------

COMPLETE = """
eval "$(hast-lightning -sc install=bash)"
complete -p hast-lightning
COMP_LINE="hast-lightning $1"
COMP_POINT=${#COMP_LINE}
COMP_CWORD=$2
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""
ENTRY_POINT = f"#!{sys.executable}\nfrom hast_lightning.cli.start import main\n\nmain()\n"


@pytest.fixture(scope="module")
def bash_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A search path on which ``hast-lightning`` is the script that an installation makes."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "hast-lightning"
    script.write_text(ENTRY_POINT)
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def completed(typed: str, path: str, folder: Path) -> list[str]:
    """What bash would offer for the last of the words ``typed``."""
    package = Path(cli.__file__).parents[1]
    finished = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", COMPLETE, "bash", typed, str(len(typed.split()))],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    registered, *offered = finished.stdout.splitlines()
    assert registered.endswith("-F hydra_bash_completion hast-lightning")
    return [word for word in offered if word]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        pytest.param("+experiment=dig", ["+experiment=digits"], marks=SLOW),
        pytest.param("seed=1 quantizer=m", ["quantizer=minmax", "quantizer=mse"], marks=SLOW),
        pytest.param("-m quantizer.weight_b", ["quantizer.weight_bits="], marks=SLOW),
        pytest.param("artifact=./o", ["artifact=./outputs"], marks=SLOW),
        pytest.param("artifact=o", [], marks=SLOW),
    ],
)
def test_bash_completes(typed: str, offered: list[str], bash_path: str, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    assert completed(typed, bash_path, tmp_path) == offered
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        # Of a plain key the value that it has, whatever else it may have.
        ("command=", "command=run"),
        ("+experiment=digits_w2a2 quantizer.weight_bits=", "quantizer.weight_bits=2"),
    ],
)
def test_bash_is_handed_what_completes(
    typed: str, offered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the shell's function asks for, without the shell."""
    monkeypatch.setenv("COMP_LINE", f"hast-lightning {typed}")
    monkeypatch.setenv("COMP_POINT", str(len(f"hast-lightning {typed}")))
    finished = call("-sc", "query=bash", folder=tmp_path)
    assert (finished.status, finished.out.split()) == (0, [offered])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_handed_a_script(shell: str, tmp_path: Path) -> None:
    finished = call("-sc", f"install={shell}", folder=tmp_path)
    assert (finished.status, finished.err) == (0, "")
    assert "-sc query=" in finished.out
