"""``method=best`` on the command line: shown, recorded, and behind what is typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from hast_lightning.config.choice import fewest
from tests.command_line import TINY, call


def test_what_is_chosen_is_printed_recorded_and_makes_the_same_again(tmp_path: Path) -> None:
    done = call("method=best", *TINY, "hydra.run.dir=run", folder=tmp_path)
    assert done.status == 0, done
    chosen = "method=hast schedule=demo quantizer.weight_bits=3 quantizer.activation_bits=3"
    assert f"method=best: {chosen} tuned=hast_digits\n" in done.out
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["method"], result["budget"]) == ("hast", "demo")
    words = shlex.split(result["command"])[3:]
    assert "method=best" not in words and "method=hast" in words
    again = [word.replace("=run", "=again") for word in words]
    assert call(*again, folder=tmp_path).status == 0
    first, second = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("run", "again"))
    assert first == second


def test_what_is_typed_goes_before_what_is_chosen(tmp_path: Path) -> None:
    words = ("schedule=one_minute", "quantizer.bits=4", "trainer.channels_last=false")
    done = call("method=best", "command=inspect", *words, *TINY, folder=tmp_path)
    assert done.status == 0, done
    line = next(line for line in done.out.splitlines() if line.startswith("method=best"))
    assert "method=without_training trainer.channels_last=true" in line
    assert "nothing was measured on images of 1x8x8" in line
    assert "without_training, budget one_minute" in done.out
    # Time and memory on this machine, too.
    assert "measuring and" in done.out and "memory" in done.out


def test_a_sweep_chooses_for_each_job(tmp_path: Path) -> None:
    words = ("-m", "method=best", "schedule=one_minute,demo", *TINY, "hydra.sweep.dir=sweep")
    done = call(*words, "export=none", folder=tmp_path)
    assert done.status == 0, done
    # Several methods are compared at the end.
    assert "error, no labels" in done.out
    assert (tmp_path / "sweep/comparison/comparison.html").is_file()
    results = [json.loads((tmp_path / f"sweep/{i}/result.json").read_text()) for i in (0, 1)]
    assert [each["method"] for each in results] == ["without_training", "hast"]
    assert "method=without_training" in results[0]["command"]


def test_a_recipe_names_its_method_itself(tmp_path: Path) -> None:
    done = call("+experiment=digits_w3a3", "method=best", folder=tmp_path)
    assert "method=best: a recipe names its method itself" in done.refusal()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "few"),
    [
        ({}, None),
        ({"bits": "4", "weight_bits": "2"}, 4),
        ({"weight_bits": "8", "activation_bits": "3"}, 3),
        ({"weight_bits": "4", "activation_bits": "null"}, 4),
        ({"bits": "null", "activation_bits": "5"}, 5),
    ],
)
def test_the_fewer_bits_decide(said: dict[str, str], few: int | None) -> None:
    assert fewest(said) == few
