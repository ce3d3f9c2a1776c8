"""Settings of the front end: what follows from them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hast_lightning.config import ModelConfig
from hast_lightning.core.front_end import FrontEnd
from hast_lightning.errors import ConfigurationError
from tests.composition import composed


def test_the_defaults_are_those_of_mlperf_tiny() -> None:
    front_end = FrontEnd(sample_rate=16000)
    assert (front_end.window, front_end.stride, front_end.fft_length) == (480, 320, 512)
    assert front_end.shape == (1, 49, 10)
    words = ("model=mlperf_keywords", "model.factory=tests.features:network")
    assert composed(*words).model.front_end == front_end


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.03, 1), (0.0499, 1), (0.05, 2), (1.0, 49), (2.0, 99)]
)
def test_only_whole_frames_count(seconds: float, frames: int) -> None:
    assert FrontEnd(sample_rate=16000, seconds=seconds).frames == frames


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 500}, "sample_rate=500 must be at least 1000"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"seconds": 61.0}, "seconds=61.0"),
        ({"window_ms": 0.1}, "window_ms=0.1"),
        ({"window_ms": 1.0, "sample_rate": 1000, "highest_hz": 500.0}, "window_ms=1.0 is 1 sample"),
        ({"window_ms": 40.0, "seconds": 0.03}, "window_ms=40.0 is longer than seconds=0.03"),
        ({"stride_ms": 0.0}, "stride_ms=0.0"),
        ({"mel_bands": 3}, "mel_bands=3 must be at least 4"),
        ({"coefficients": 41}, "coefficients=41 must be at least 1 and at most 40"),
        ({"highest_hz": 8001.0}, "highest_hz=8001.0 must be at least 0 and at most 8000"),
        ({"lowest_hz": 4000.0}, "lowest_hz=4000.0 must be less than highest_hz=4000.0"),
        ({"log_offset": 0.0}, "log_offset=0.0 must be greater than 0"),
        ({"scaling": "loud"}, "scaling='loud' is not one of: full_scale, maximum, peak"),
        ({"seconds": 60.0, "stride_ms": 1.0}, "frames of 512 values are more than"),
        ({"sample_rate": 0, "stride_ms": 10.0}, "stride_ms=10.0 without model.front_end.sample_"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^model\.front_end") as refused:
        FrontEnd(**{"sample_rate": 16000, **settings})
    assert message in str(refused.value)


def test_no_rate_is_no_front_end() -> None:
    words = {"provider": "own", "name": "any", "factory": "a:b", "input_size": "49x10"}
    assert ModelConfig(**words, modality="features").hearing is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"modality": "pictures"}, "model.front_end with model.modality=pictures"),
        ({"input_size": "49x12"}, "makes 49 frames of 10 coefficients: say model.input_size=49x10"),
    ],
)
def test_a_front_end_that_does_not_fit_the_network_is_refused(
    words: dict[str, Any], message: str
) -> None:
    usual = {"provider": "own", "name": "any", "factory": "a:b", "input_size": "49x10"}
    settings = {**usual, "modality": "features", "front_end": FrontEnd(sample_rate=16000), **words}
    with pytest.raises(ConfigurationError) as refused:
        ModelConfig(**settings)
    assert message in str(refused.value)
