"""Observing a run shows what it should, when it should, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import Logger

from hast_lightning.config import Config
from hast_lightning.runtime.random_streams import random_streams
from hast_lightning.tracking.media import Media
from hast_lightning.training.callbacks.observation import Observation
from hast_lightning.training.module import ZeroShotQuantization
from tests.small_runs import (
    ALTERNATING,
    ALTERNATING_BANK,
    GENERATOR,
    build_module,
    fit,
    small,
)

pytestmark = pytest.mark.usefixtures("undisturbed_torch")


class Gallery(Logger):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, Media]] = []

    name = version = "gallery"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_media(self, media: Media, iteration: int) -> None:
        self.shown.append((iteration, media))


def observed(config: Config) -> tuple[ZeroShotQuantization, Gallery]:
    module, gallery = build_module(config), Gallery()
    fit(module, [Observation(config.callbacks, module.teacher.pretrained)], [gallery])
    return module, gallery


def names(media: Media) -> set[str]:
    return {*media.pictures, *media.histograms, *(["layers"] if media.layers else [])}


DIFFICULTIES = {
    f"batch/difficulty/{network}{suffix}"
    for network in ("student", "teacher")
    for suffix in ("", "_promoted")
}
SAMPLES = {"samples/images", "samples/difficulty", "samples/teacher_confidence"}


def test_every_stage_shows_what_it_changes_at_its_interval_and_at_its_end() -> None:
    _, gallery = observed(small("callbacks.media_every_n_steps=4"))
    shown = {iteration: names(media) for iteration, media in gallery.shown}
    # Six steps of synthesis (0 to 5), two of calibration, three of the student.
    assert shown == {
        0: SAMPLES,  # early, as at steps 4, 16, 64 and so on
        3: SAMPLES,
        5: SAMPLES,
        7: {"layers"},
        10: DIFFICULTIES | {"layers"},
    }


def test_an_alternating_run_shows_all_at_once() -> None:
    _, gallery = observed(small(*ALTERNATING, "callbacks.media_every_n_steps=100"))
    assert [(i, names(media)) for i, media in gallery.shown] == [
        (0, SAMPLES),
        (1, SAMPLES | {"layers"}),
        (4, SAMPLES | {"layers"} | DIFFICULTIES),
    ]


def test_without_promotion_there_is_nothing_after_it() -> None:
    _, gallery = observed(small("stages.distillation.transforms.promotion.enabled=false"))
    assert names(gallery.shown[-1][1]) == {
        "batch/difficulty/student",
        "batch/difficulty/teacher",
        "layers",
    }


def test_the_histograms_are_of_what_the_step_saw() -> None:
    _, gallery = observed(small("trainer.micro_batch=3"))
    histograms = gallery.shown[-1][1].histograms
    assert {len(values) for values in histograms.values()} == {8}
    before = histograms["batch/difficulty/student"]
    assert not torch.equal(before, histograms["batch/difficulty/student_promoted"])


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        pytest.param(ALTERNATING_BANK, marks=pytest.mark.slow),
        pytest.param(GENERATOR, marks=pytest.mark.slow),
        ALTERNATING,
    ],
    ids=["bank", "alternating_bank", "generator", "alternating_generator"],
)
def test_a_run_that_is_looked_at_is_the_same_bit_by_bit(overrides: tuple[str, ...]) -> None:
    config = small(*overrides, "callbacks.media_every_n_steps=1")
    watched, gallery = observed(config)
    assert len(gallery.shown) >= 5
    streams = random_streams()
    alone = build_module(config)
    fit(alone)
    assert torch.equal(streams["torch"], random_streams()["torch"])
    state = alone.state_dict()
    for name, value in watched.state_dict().items():
        same = torch.equal(value, state[name]) if isinstance(value, torch.Tensor) else True
        assert same or bool(value.isnan().all()), name
