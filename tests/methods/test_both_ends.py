"""Noise and own pictures: both ends of a table are one method with two sources."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from hast_lightning.records.result import Result
from tests.command_line import TINY, call
from tests.composition import composed


def pictures(folder: Path) -> str:
    """A file of 12 pictures of the bundled network's size."""
    path = folder / "pictures.npz"
    np.savez(path, x=np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8))
    return f"sources.images.path={path}"


def run(folder: Path, *words: str) -> Result:
    done = call(*TINY, "quantizer=minmax", *words, "hydra.run.dir=run", folder=folder)
    assert done.status == 0, done
    return Result.read(folder / "run" / "result.json")


def test_both_ends_differ_in_their_source_and_in_crops_alone() -> None:
    noise, own = composed("method=noise"), composed("method=own_images")
    assert (noise.sources["images"].kind, own.sources["images"].kind) == ("noise", "images")
    assert noise.order == own.order == ["calibration", "distillation"]
    lower, upper = (dataclasses.asdict(c.stages["distillation"]) for c in (noise, own))
    assert set(upper.pop("transforms")) == {"crop_and_flip"}
    assert lower.pop("transforms") == {}
    assert lower == upper


@pytest.mark.parametrize("order", ["[calibration,distillation]", "[calibration,correction]"])
def test_noise_is_learned_from_with_and_without_training(tmp_path: Path, order: str) -> None:
    result = run(tmp_path, "method=noise", f"order={order}")
    assert list(result.steps_by_stage) == order.strip("[]").split(",")


def test_own_pictures_are_learned_from(tmp_path: Path) -> None:
    result = run(tmp_path, "method=own_images", pictures(tmp_path), "data.holdout=0.25")
    assert result.method == "own_images"
    assert result.steps_by_stage == {"calibration": 2, "distillation": 3}


def test_pictures_that_are_nowhere_are_refused_in_one_line(tmp_path: Path) -> None:
    said = call(*TINY, "method=own_images", folder=tmp_path).refusal()
    assert said.startswith("sources.images.path is not set")
