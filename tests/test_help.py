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
from tests.command_line import Finished, call
from tests.composition import composed_raw, options

HELP_FILE = config_folder() / "hydra" / "help" / "hast_lightning.yaml"
PLACEHOLDERS = ("$APP_CONFIG_GROUPS", "$CONFIG")


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


def test_groups_and_recipes_are_listed(shown: Finished) -> None:
    groups = dict(line.split(": ") for line in section(shown.out, "Groups") if ": " in line)
    assert groups["experiment"].split(", ") == options("experiment")
    for group in ("model", "quantizer", "sweep", "logger", "export"):
        assert groups[group].split(", ") == options(group)


def test_keys_are_as_the_rest_of_the_line_leaves_them(shown: Finished, tmp_path: Path) -> None:
    other = call("+experiment=digits_w2a2", "--help", folder=tmp_path)
    assert "  weight_bits: 3" in section(shown.out, "Keys")
    assert "  weight_bits: 2" in section(other.out, "Keys")
    assert list(tmp_path.iterdir()) == []


def test_lines_fit_on_a_screen_and_hold_no_placeholder(shown: Finished) -> None:
    text = HELP_FILE.read_text(encoding="utf-8")
    assert all(len(line) <= 100 for line in text.splitlines())
    dollars = set(re.findall(r"\$[A-Za-z_]+", text))
    assert dollars == set(PLACEHOLDERS)
    assert "$" not in section(shown.out, "Use")[0]


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
ENTRY_POINT = f"#!{sys.executable}\nfrom hast_lightning.cli.main import main\n\nmain()\n"


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
        ("+experiment=dig", ["+experiment=digits"]),
        ("seed=1 quantizer=m", ["quantizer=minmax", "quantizer=mse"]),
        ("-m quantizer.weight_b", ["quantizer.weight_bits="]),
        # Of a plain key the value that it has, whatever else it may have.
        ("command=", ["command=run"]),
        ("+experiment=digits_w2a2 quantizer.weight_bits=", ["quantizer.weight_bits=2"]),
        ("artifact=./o", ["artifact=./outputs"]),
        ("artifact=o", []),
    ],
)
def test_bash_completes(typed: str, offered: list[str], bash_path: str, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    assert completed(typed, bash_path, tmp_path) == offered
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_handed_a_script(shell: str, tmp_path: Path) -> None:
    finished = call("-sc", f"install={shell}", folder=tmp_path)
    assert (finished.status, finished.err) == (0, "")
    assert "-sc query=" in finished.out
