"""Recordings as features: the formulas, and a folder of folders."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hast_lightning.config import DataConfig
from hast_lightning.core.front_end import FrontEnd
from hast_lightning.data.evaluation import EvaluationData, load_evaluation_data
from hast_lightning.data.recordings import mfcc
from hast_lightning.errors import ConfigurationError, DataError
from tests import features
from tests.sounds import FRONT_END, PITCHES, loaded, need_torchaudio, save_tones, tone, wave_bytes
from tests.test_optional_packages import hide

MLPERF = FrontEnd(sample_rate=16000)


@pytest.fixture(autouse=True)
def _package() -> None:
    need_torchaudio()


def reference(values: NDArray[np.float64], settings: FrontEnd) -> NDArray[np.float64]:
    """The formulas in numpy: frames, magnitudes, triangles in mel, logarithm, cosines."""
    divisor = {"maximum": values.max(), "peak": np.abs(values).max(), "full_scale": 1.0}
    length = round(settings.sample_rate * settings.seconds)
    heard = np.zeros(length)
    heard[: len(values)] = values / divisor[settings.scaling]
    size = round(settings.sample_rate * settings.window_ms / 1000)
    step = round(settings.sample_rate * settings.stride_ms / 1000)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    starts = range(0, length - size + 1, step)
    frames = np.stack([heard[start : start + size] * hann for start in starts])
    bins = 2 ** int(np.ceil(np.log2(size)))
    magnitudes = np.abs(np.fft.rfft(frames, bins))
    hertz = np.arange(bins // 2 + 1) * settings.sample_rate / bins
    edges = np.linspace(mel(settings.lowest_hz), mel(settings.highest_hz), settings.mel_bands + 2)
    triangles = [
        np.maximum(0, np.minimum((mel(hertz) - a) / (b - a), (c - mel(hertz)) / (c - b)))
        for a, b, c in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    logarithms = np.log(magnitudes @ np.stack(triangles).T + settings.log_offset)
    band = np.arange(settings.mel_bands) + 0.5
    order = np.arange(settings.coefficients)[:, None]
    cosines = np.cos(np.pi * order * band / settings.mel_bands)
    return logarithms @ cosines.T * np.sqrt(2 / settings.mel_bands)


def mel(hertz: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127 * np.log(1 + np.asarray(hertz) / 700)


@pytest.mark.parametrize(
    "settings",
    [
        MLPERF,
        FRONT_END,
        replace(MLPERF, scaling="peak", log_offset=0.01),
        replace(MLPERF, scaling="full_scale", seconds=1.4, lowest_hz=0, highest_hz=8000),
        # An odd window, as long as no power of two.
        replace(FRONT_END, window_ms=25.125, coefficients=20),
        # A window that is a power of two, so that nothing is padded.
        replace(MLPERF, window_ms=32.0, stride_ms=32.0, mel_bands=24),
    ],
    ids=lambda settings: f"{settings.sample_rate}-{settings.window_ms}-{settings.scaling}",
)
def test_features_are_those_of_the_formulas(settings: FrontEnd) -> None:
    drawn = np.random.default_rng(0)
    whole = settings.samples / settings.sample_rate
    for values in (
        tone(440, seconds=whole, rate=settings.sample_rate),
        -(tone(1300, seconds=0.7 * whole, rate=settings.sample_rate) ** 3),
        drawn.normal(size=settings.samples).clip(-1, 0.3),
        np.sin(2 * np.pi * 1000 * np.arange(settings.samples) / settings.sample_rate),
    ):
        found = mfcc(torch.from_numpy(values), settings)
        assert found.dtype == torch.float32 and found.shape == settings.shape
        np.testing.assert_allclose(found[0], reference(values, settings), rtol=0, atol=1e-4)


def test_a_pitch_is_in_its_own_band_and_frame() -> None:
    """Two tones of a known place: a reference with the same mistake would not find them."""
    whole = replace(MLPERF, coefficients=40)
    values = np.zeros(16000)
    time = np.arange(8000) / 16000
    values[:8000] = np.sin(2 * np.pi * 500 * time)
    values[8000:] = np.sin(2 * np.pi * 2000 * time)
    # All coefficients together are a rotation of the logarithms, but for the first.
    order, band = np.arange(40)[:, None], np.arange(40) + 0.5
    cosines = np.cos(np.pi * order * band / 40) * np.sqrt(2 / 40)
    cosines[0] /= 2
    logarithms = mfcc(torch.from_numpy(values), whole)[0].numpy() @ cosines
    edges = np.linspace(mel(20), mel(4000), 42)
    centers = 700 * (np.exp(edges[1:-1] / 1127) - 1)
    for frames, pitch in ((slice(0, 23), 500), (slice(26, 49), 2000)):
        loudest = centers[logarithms[frames].argmax(axis=1)]
        assert np.abs(loudest - pitch).max() < 0.06 * pitch


def test_loudness_counts_only_at_full_scale() -> None:
    values = torch.from_numpy(tone(440))
    for scaling in ("maximum", "peak"):
        settings = replace(FRONT_END, scaling=scaling)
        torch.testing.assert_close(mfcc(values / 8, settings), mfcc(values, settings))
    settings = replace(FRONT_END, scaling="full_scale")
    assert (mfcc(values / 8, settings)[0, :, 0] < mfcc(values, settings)[0, :, 0] - 1).all()


@pytest.mark.parametrize("scaling", ["maximum", "peak", "full_scale"])
def test_silence_has_features_too(scaling: str) -> None:
    found = mfcc(torch.zeros(100), replace(FRONT_END, scaling=scaling))
    expected = np.log(FRONT_END.log_offset) * np.sqrt(2 * FRONT_END.mel_bands)
    np.testing.assert_allclose(found[0, :, 0], expected, rtol=1e-5)
    assert found[0, :, 1:].abs().max() < 1e-4


def load(folder: Path, **changes: object) -> EvaluationData:
    network = replace(loaded(), **changes)  # type: ignore[arg-type]
    data = load_evaluation_data(DataConfig(source="wav", path=str(folder)), network)
    assert isinstance(data, EvaluationData)
    return data


def test_classes_are_in_the_order_of_their_names_or_sorted(tmp_path: Path) -> None:
    folder = save_tones(tmp_path / "tones", 2)
    data = load(folder, mean=(-3.0,), std=(2.0,))
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    values = np.round(tone(PITCHES["low"], 100) * 32767) / 32768
    expected = (mfcc(torch.from_numpy(values), FRONT_END) + 3) / 2
    ((inputs, _),) = data
    torch.testing.assert_close(inputs[0], expected)
    in_order = load(folder, class_names=None)
    # high, low, middle
    torch.testing.assert_close(in_order.images, data.images[[4, 5, 0, 1, 2, 3]])
    assert in_order.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_network_answers_rightly_to_its_tones(tmp_path: Path) -> None:
    data = load(save_tones(tmp_path / "tones"))
    with torch.no_grad():
        ((inputs, labels),) = data
        assert (loaded().network(inputs).argmax(1) == labels).float().mean() > 0.9


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    folder = save_tones(tmp_path / "tones", 1)
    (folder / "low" / "bad.wav").write_bytes(wave_bytes(tone(440), rate=16000))
    with pytest.raises(DataError, match=r"has a bad recording: .*bad\.wav has 16000 samples a sec"):
        load(folder)
    shutil.rmtree(folder / "low")
    with pytest.raises(DataError, match="has 2 class folders, the network 3 classes; expected one"):
        load(folder)
    (folder / "lower").mkdir()
    with pytest.raises(DataError, match="has no folder 'low', which is one of model"):
        load(folder)
    with pytest.raises(DataError, match=r"tones: lower has no recordings; allowed endings: \.wav"):
        load(folder, class_names=None)
    with pytest.raises(DataError, match=r"nowhere is not a folder; expected one folder per class"):
        load(tmp_path / "nowhere")


def test_networks_that_do_not_hear_are_refused(tmp_path: Path) -> None:
    config = DataConfig(source="wav", path=str(tmp_path))
    for network, message in (
        (features.loaded(), r"data=wav are recordings, .* set model\.front_end\.sample_rate"),
        (replace(features.loaded(), modality="pictures"), "tiny takes pictures"),
    ):
        with pytest.raises(DataError, match=message):
            load_evaluation_data(config, network)


def test_without_the_package_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = loaded()
    hide("torchaudio", monkeypatch)
    config = DataConfig(source="wav", path=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"pip install 'hast-lightning\[audio\]'"):
        load_evaluation_data(config, network)
