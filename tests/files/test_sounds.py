"""Recordings from untrusted files: read to the right numbers, or refused in one line."""

from __future__ import annotations

import os
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hast_lightning.errors import DataError
from hast_lightning.files.sounds import find_sounds, read_sound
from tests.sounds import RATE, tone, wave_bytes

SAMPLES = RATE // 2


def read(folder: Path, content: bytes, samples: int = SAMPLES) -> np.ndarray:
    path = folder / "a.wav"
    path.write_bytes(content)
    return read_sound(path, RATE, samples)


@pytest.mark.parametrize(
    ("bits", "tag", "error"),
    [
        *((8, 1, 1 / 64), (16, 1, 1e-4), (24, 1, 1e-6), (32, 1, 1e-8), (32, 3, 1e-7)),
        *((64, 3, 1e-15), (16, 0xFFFE, 1e-4), (24, 0xFFFE, 1e-6)),
    ],
)
def test_every_width_gives_the_same_tone(bits: int, tag: int, error: float, tmp_path: Path) -> None:
    values = tone(440)
    found = read(tmp_path, wave_bytes(values, bits=bits, tag=tag))
    assert found.dtype == np.float64 and found.shape == values.shape
    assert np.abs(found - values).max() < error


@pytest.mark.parametrize("width", [1, 2, 4])
def test_what_python_writes_is_read_with_its_own_full_scale(width: int, tmp_path: Path) -> None:
    ends = {1: b"\x00\x80\xff", 2: struct.pack("<3h", -(2**15), 0, 2**15 - 1)}
    content = ends.get(width, struct.pack("<3i", -(2**31), 0, 2**31 - 1))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, width, RATE, 0, "NONE", ""))
        file.writeframes(content)
    found = read_sound(tmp_path / "a.wav", RATE, SAMPLES)
    np.testing.assert_allclose(found, [-1, 0, 1 - 2.0 ** (1 - 8 * width)], atol=0)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(440), tone(200, 1)
    found = read(tmp_path, wave_bytes(np.stack([left, right], axis=1), bits=32, tag=3))
    np.testing.assert_allclose(found, (left + right) / 2, atol=1e-7)


def test_other_parts_of_a_file_are_passed_over(tmp_path: Path) -> None:
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    values = tone(440)
    plain = read(tmp_path, wave_bytes(values))
    np.testing.assert_array_equal(read(tmp_path, wave_bytes(values, before=odd)), plain)
    np.testing.assert_array_equal(read(tmp_path, wave_bytes(values) + b"LIST"), plain)


GOOD = wave_bytes(tone(440))
START = GOOD.index(b"data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a .wav file, or it is truncated"),
        (b"RIFX" + GOOD[4:], r"is not a .wav file \(RIFF, WAVE\)"),
        (GOOD[:START], "is not a .wav file, or it is truncated"),
        (GOOD[:-2], "is truncated: it announces 8000 bytes and has 7998"),
        (GOOD[:12] + GOOD[START:], "has samples before it says of what kind"),
        (GOOD[:12] + b"LIST\0\0\0\0" * 64 + GOOD[12:], "has no samples among its first 64 parts"),
        (GOOD[: START + 4] + b"\xff\xff\xff\xff" + GOOD[START + 8 :], "has 2.684e.05 seconds"),
        (wave_bytes(tone(440)[:0]), "has no samples"),
        (wave_bytes(tone(440, seconds=0.501)), "has 0.501 seconds; the network hears 0.5: cut it"),
        (wave_bytes(tone(440), rate=16000), "has 16000 samples a second; the network hears 8000"),
        (wave_bytes(np.zeros((4, 9))), "has 9 channels; allowed: 1 to 8"),
        (wave_bytes(np.zeros(4), bits=64), "encoding 1 with 64 bits; allowed: PCM of 8, 16"),
        (wave_bytes(np.zeros(4), bits=8, tag=7), "encoding 7 with 8 bits"),
        (wave_bytes(np.full(4, np.nan), bits=32, tag=3), "NaN or infinite"),
        (GOOD[:32] + b"\x03\0" + GOOD[34:], "has a damaged header"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as refused:
        read(tmp_path, content)
    assert len(str(refused.value).splitlines()) == 1
    assert str(refused.value).startswith(str(tmp_path / "a.wav"))


def test_a_pipe_and_a_folder_are_no_recordings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    (tmp_path / "b.wav").mkdir()
    for name in ("a.wav", "b.wav", "c.wav"):
        with pytest.raises(DataError, match="is not a file"):
            read_sound(tmp_path / name, RATE, SAMPLES)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 80), place=st.integers(0, 60), byte=st.integers(0, 255))
def test_a_damaged_file_gives_bounded_numbers_or_one_line(
    tmp_path: Path, cut: int, place: int, byte: int
) -> None:
    content = bytearray(wave_bytes(tone(440)[:32]))
    content[place] = byte
    try:
        found = read(tmp_path, bytes(content[: len(content) - cut]))
    except DataError:
        return
    assert 0 < len(found) <= SAMPLES and np.isfinite(found).all()


def test_recordings_are_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.wav", "in/a.WAV", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in find_sounds(tmp_path, "here")]
    assert found == ["b.wav", "in/a.WAV"]
    with pytest.raises(DataError, match=r"here has no recordings; allowed endings: \.wav, \.wave"):
        (tmp_path / "none").mkdir()
        find_sounds(tmp_path / "none", "here")
