"""Paths with any characters: what is typed is the file, or a line says how to type it."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from hast_lightning.config.quoting import spelled, with_paths_as_texts
from hast_lightning.models.providers.bundled import DIGITS_WEIGHTS
from tests.command_line import call

NAMES = (
    "epoch=3-step=99.ckpt",
    "~tilde.ckpt",
    "two words.ckpt",
    "run[1].ckpt",
    "[all].ckpt",
    "{braces}.ckpt",
    "(round).ckpt",
    "größe.ckpt",
    "日本.ckpt",
    "one,two.ckpt",
    "it's.ckpt",
    'quo"te.ckpt',
    "hash#.ckpt",
    "a&b;c!.ckpt",
    "back\\slash.ckpt",
    "dollar${HOME}.ckpt",
    " leading.ckpt",
    "epoch=3, größe [a] ~ 'x'.ckpt",
)
TAKEN = ("two words.ckpt", "back\\slash.ckpt", "dollar${HOME}.ckpt", " leading.ckpt")
"""What needs no quotes behind a folder, or is a reference to OmegaConf."""
REFUSED = [name for name in NAMES if name not in TAKEN]


def parsed(word: str) -> object:
    (single,) = shlex.split(word)
    return OverridesParser.create().parse_override(single).value()


@pytest.mark.parametrize("name", NAMES)
def test_the_quoted_form_is_this_very_text(name: str) -> None:
    # What OmegaConf would take for a reference is escaped, and it takes that back.
    assert str(parsed(spelled("images", name))).replace(r"\${", "${") == name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights under every name."""
    made = tmp_path_factory.mktemp("weights")
    with resources.as_file(resources.files("hast_lightning.models") / DIGITS_WEIGHTS) as bundled:
        for name in NAMES:
            (made / f"{name}.safetensors").write_bytes(bundled.read_bytes())
    return made


@pytest.mark.parametrize("name", REFUSED)
def test_the_form_that_a_refusal_prints_works(folder: Path, name: str) -> None:
    word = f"model.checkpoint={folder}/{name}.safetensors"
    line = call("command=inspect", word, folder=folder).refusal()
    assert repr(word) in line
    printed = line[line.index("model.checkpoint=", line.index(repr(word)) + len(word)) - 1 :]
    (works,) = shlex.split(printed.removesuffix(" is one value with a comma in it"))
    found = call("command=inspect", works, folder=folder)
    assert found.status == 0, found.err
    assert f"{name}.safetensors, SHA-256" in found.out.replace("\n", "")


def test_the_home_folder_is_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    line = call("model.checkpoint=~/größe.pth", folder=tmp_path).refusal()
    assert line.endswith("""'model.checkpoint="/home/somebody/größe.pth"'""")
    line = call("hydra.run.dir=~/out", folder=tmp_path).refusal()
    assert line.endswith("""'hydra.run.dir="/home/somebody/out"'""")


def test_a_list_of_paths_keeps_being_one(tmp_path: Path) -> None:
    line = call("command=compare", "runs=[größe,a=b]", folder=tmp_path).refusal()
    assert parsed(line.rpartition("the shell: ")[2]) == ["größe", "a=b"]


def test_the_rest_of_a_value_with_a_space_is_recognized(tmp_path: Path) -> None:
    line = call("command=predict", "images=my", "pictures/x.png", folder=tmp_path).refusal()
    assert line.startswith("'pictures/x.png' is no setting")
    assert line.endswith("""if it belongs to 'images=my': 'images="my pictures/x.png"'""")


def test_what_is_no_setting_at_all_is_named(tmp_path: Path) -> None:
    line = call("größe=a b", folder=tmp_path).refusal()
    assert line == "'größe=a b' cannot be read as key=value or group=option"


@pytest.mark.parametrize("text", ["007", "1e3", "1_000", "true", "0x10", ".5"])
def test_a_path_is_no_number(text: str) -> None:
    for key in ("images", "sources.bank.path", "+sources.bank.load"):
        (word,) = with_paths_as_texts([f"{key}={text}"])
        assert OverridesParser.create().parse_override(word).value() == text
    kept = ["seed=007", "images=null", "-m", "quantizer.bits=2,3", "images=a=b"]
    assert with_paths_as_texts(kept) == kept
