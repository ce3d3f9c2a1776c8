"""Generated tones in .wav files, and a tiny network that tells their pitches apart."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.front_end import FrontEnd
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models import zoo

RATE = 8000
FRONT_END = FrontEnd(
    sample_rate=RATE,
    seconds=0.5,
    window_ms=30,
    stride_ms=32,
    mel_bands=20,
    highest_hz=3000,
    coefficients=8,
)
FRAMES = FRONT_END.frames
PITCHES = {"low": 250.0, "middle": 700.0, "high": 1900.0}
NAMES = tuple(PITCHES)
SETTINGS = (
    f"sample_rate:{RATE},seconds:0.5,window_ms:30,stride_ms:32,mel_bands:20,highest_hz:3000,"
    "coefficients:8"
)
WORDS = (
    "model=own",
    "model.factory=tests.sounds:network",
    f"model.input_size={FRAMES}x8",
    "model.modality=features",
    f"model.front_end={{{SETTINGS}}}",
    f"model.class_names=[{','.join(NAMES)}]",
)
"""Of the command line."""


def need_torchaudio() -> None:
    """Skip the test where the package is not installed that features are computed with."""
    pytest.importorskip("torchaudio", reason="needs torchaudio")


def tone(
    pitch: float, seed: int = 0, seconds: float = 0.5, rate: int = RATE
) -> NDArray[np.float64]:
    """A tone with some noise, in [-1, 1]."""
    drawn = np.random.default_rng(seed)
    time = np.arange(round(rate * seconds)) / rate
    swing = np.sin(2 * np.pi * pitch * (0.9 + 0.2 * drawn.random()) * time)
    return 0.6 * swing + 0.05 * drawn.normal(size=len(time)).clip(-3, 3)


def wave_bytes(
    values: NDArray[np.float64],
    rate: int = RATE,
    bits: int = 16,
    tag: int = 1,
    *,
    before: bytes = b"",
) -> bytes:
    """A .wav file of values (n,) or (n, channels), with other parts before its samples.

    Written by hand, since Python's own module writes no floats and no extensible headers.
    """
    channels = values.shape[1] if values.ndim == 2 else 1
    floats = tag == 3
    if floats:
        data = values.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        data = (np.round(values * 127) + 128).astype(np.uint8).tobytes()
    else:
        wide = np.round(values * (2 ** (bits - 1) - 1)).astype("<i8")
        data = wide.reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes()
    width = channels * bits // 8
    head = struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits)
    if tag == 0xFFFE:
        head += struct.pack("<HHIH", 22, bits, 0, 1) + bytes(14)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + before
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def save_tones(folder: Path, each: int = 4) -> Path:
    """A folder of a few recordings of each pitch; the last of each is shorter than the others."""
    for name, pitch in PITCHES.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            seconds = 0.35 if number == each - 1 else 0.5
            content = wave_bytes(tone(pitch, 100 + number, seconds))
            (folder / name / f"{number}.wav").write_bytes(content)
    return folder


@functools.cache
def network() -> nn.Module:
    """A network of two convolutions, trained for a moment."""
    from hast_lightning.data.recordings import mfcc

    drawn = [(seed, seconds) for seed in range(8) for seconds in (0.35, 0.5)]
    tones = [tone(pitch, *more) for pitch in PITCHES.values() for more in drawn]
    inputs = torch.stack([mfcc(torch.from_numpy(values), FRONT_END) for values in tones])
    labels = torch.arange(3).repeat_interleave(len(drawn))
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(1, 12, (3, 8), padding=(1, 0)),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 12, (3, 1), padding=(1, 0)),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 3),
        )
        optimizer = torch.optim.Adam(layers.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layers(inputs), labels).backward()
            optimizer.step()
    return layers.eval().requires_grad_(False)


@functools.cache
def loaded(*, names: bool = True) -> PretrainedNetwork:
    """The same as a run loads it."""
    return zoo.load(
        ModelConfig(
            provider="own",
            name="ear",
            factory="tests.sounds:network",
            input_size=f"{FRAMES}x8",
            modality="features",
            front_end=FRONT_END,
            class_names=list(NAMES) if names else None,
        )
    )
