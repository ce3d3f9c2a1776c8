"""Presets of sweeps: which jobs they make."""

from __future__ import annotations

from pathlib import Path

import pytest

from hast_lightning import pipeline
from hast_lightning.config import Config
from tests.command_line import call


def jobs(preset: str, folder: Path, *arguments: str) -> list[Config]:
    """The configurations of the jobs that a preset starts, none of which is carried out."""
    seen: list[Config] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", lambda config, folder, command: seen.append(config))
        finished = call(f"sweep={preset}", *arguments, folder=folder)
    assert finished.status == 0, finished
    return seen


def test_the_ablation_is_every_combination_of_three_switches(tmp_path: Path) -> None:
    switches = {
        (
            config.synthesis.hardness.enabled,
            config.distillation.promotion.enabled,
            config.distillation.alignment.enabled,
        )
        for config in jobs("ablation", tmp_path)
    }
    assert len(switches) == 8


def test_bits_of_weights_and_activations_go_together(tmp_path: Path) -> None:
    bits = [
        (config.quantizer.weight_bits, config.quantizer.activation_bits)
        for config in jobs("bits", tmp_path)
    ]
    assert bits == [(bits, bits) for bits in range(2, 9)]


@pytest.mark.parametrize(
    ("preset", "count"),
    [("hardness", 12), ("promotion", 5), ("alignment", 5), ("seeds", 3), ("none", 1)],
)
def test_the_other_presets(preset: str, count: int, tmp_path: Path) -> None:
    assert len(jobs(preset, tmp_path)) == count


def test_a_preset_goes_with_a_recipe(tmp_path: Path) -> None:
    found = jobs("seeds", tmp_path, "+experiment=digits_w2a2")
    assert {(config.recipe, config.seed) for config in found} == {
        ("digits_w2a2", 0),
        ("digits_w2a2", 1),
        ("digits_w2a2", 2),
    }
