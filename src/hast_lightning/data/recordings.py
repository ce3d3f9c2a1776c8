"""Recordings: MFCC of .wav files, and a folder of them with one folder per class."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hast_lightning.core.front_end import MAXIMUM, PEAK, FrontEnd
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.files.sounds import EXTENSIONS, find_sounds, read_sound

if TYPE_CHECKING:
    from hast_lightning.config import DataConfig
    from hast_lightning.core.network import PretrainedNetwork

LAYOUT = "one folder per class with .wav files, e.g. words/yes/0a7c2a8d_nohash_0.wav"


def require_torchaudio() -> None:
    """Refuse where the package that features are computed with is not installed.

    Raises:
        ConfigurationError: it is missing.
    """
    if importlib.util.find_spec("torchaudio") is None:
        raise ConfigurationError(
            "features of recordings need torchaudio, which is not installed: pip install "
            "'hast-lightning[audio]'"
        )


def mfcc(waveform: Tensor, front_end: FrontEnd) -> Tensor:
    """Return MFCC (1, frames, coefficients), float32, of a recording.

    ``c_k = sqrt(2 / B) sum_b log(m_b + offset) cos(pi k (b + 1/2) / B)``, where ``m_b`` are the
    magnitudes of a frame under Hann's (periodic) window, summed under the triangle b of B. The
    triangles are straight in mel and reach 1. TensorFlow's ``tf.signal`` computes that, and so
    does MLPerf Tiny; other libraries have triangles that are straight in hertz, take squares of
    magnitudes, center the frames, or divide the first coefficient by ``sqrt(2)``.

    Source: MLPerf Tiny, keyword spotting, ``get_dataset.py``; certain.

    Args:
        waveform: (n,), n at most ``front_end.samples``; silence is added behind it.
        front_end: The settings.

    Raises:
        ConfigurationError: torchaudio is not installed.
    """
    require_torchaudio()
    # Here, because it takes a third of a second to import and only recordings need it.
    from torchaudio.compliance.kaldi import get_mel_banks
    from torchaudio.functional import create_dct, spectrogram

    window, length = front_end.window, front_end.fft_length
    # In float64: in float32 the noise of the transform is above the offset, where all is quiet.
    scaled = pad(_scaled(waveform.double(), front_end.scaling), (0, front_end.samples))
    # Torch centers a window that is shorter than the transform; a frame is to begin with it.
    before = (length - window) // 2
    padded = pad(scaled[: front_end.samples], (before, length - window - before))
    magnitudes = spectrogram(
        padded,
        pad=0,
        window=torch.hann_window(window, dtype=torch.float64),
        n_fft=length,
        hop_length=front_end.stride,
        win_length=window,
        power=1.0,
        normalized=False,
        center=False,
    )
    bands, _ = get_mel_banks(
        front_end.mel_bands,
        length,
        float(front_end.sample_rate),
        front_end.lowest_hz,
        front_end.highest_hz,
        # Of vocal tracts, which are not warped: a factor of 1.
        vtln_low=0.0,
        vtln_high=0.0,
        vtln_warp_factor=1.0,
    )
    # The last magnitude is that of half the rate, where every triangle has ended.
    mel = bands.double() @ magnitudes[:-1]
    cosines = create_dct(front_end.coefficients, front_end.mel_bands, norm=None).double()
    logarithms = torch.log(mel + front_end.log_offset)
    found: Tensor = logarithms.T @ cosines / math.sqrt(2 * front_end.mel_bands)
    return found.float()[None]


def _scaled(waveform: Tensor, scaling: str) -> Tensor:
    """Return samples over their maximum or peak; as they are where that is not above 0."""
    divisor = {MAXIMUM: waveform.max(), PEAK: waveform.abs().max()}.get(scaling)
    return waveform if divisor is None or divisor <= 0 else waveform / divisor


def read_features(path: Path, front_end: FrontEnd) -> Tensor:
    """Return the MFCC (1, frames, coefficients) of a .wav file.

    Raises:
        ConfigurationError: torchaudio is not installed.
        DataError: the file cannot be read, or is not what the network hears.
    """
    samples = read_sound(path, front_end.sample_rate, front_end.samples)
    return mfcc(torch.from_numpy(samples), front_end)


def load_recordings(config: DataConfig, network: PretrainedNetwork) -> tuple[Tensor, NDArray[Any]]:
    """Return features (N, 1, frames, coefficients) and labels (N,) of a folder of folders.

    Class folders are in the order of the network's class names where it has them, which then are
    the folders' names, else in sorted order.

    Raises:
        ConfigurationError: torchaudio is not installed.
        DataError: the network has no front end, or the folder is not such a folder.
    """
    front_end, origin = network.front_end, f"data.path={config.path}"
    if front_end is None:
        raise DataError(
            f"data=wav are recordings, and nothing says how features of the network {network.name} "
            "are made of them: set model.front_end.sample_rate (model=mlperf_keywords has MLPerf "
            "Tiny's), or choose data=npz for features"
        )
    require_torchaudio()
    root = Path(config.path or "").expanduser()
    if config.path is None or not root.is_dir():
        raise DataError(f"{origin} is not a folder; expected {LAYOUT}")
    features, labels = [], []
    for label, name in enumerate(_classes(root, network, origin)):
        for path in find_sounds(root / name, f"{origin}: {name}"):
            try:
                features.append(read_features(path, front_end))
            except DataError as error:
                raise DataError(f"{origin} has a bad recording: {error}") from error
            labels.append(label)
    return torch.stack(features), np.array(labels)


def _classes(root: Path, network: PretrainedNetwork, origin: str) -> list[str]:
    """Return the names of the class folders, in the order of the labels."""
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    if len(found) != network.num_classes:
        raise DataError(
            f"{origin} has {len(found)} class folders, the network {network.num_classes} classes; "
            f"expected {LAYOUT}"
        )
    names = network.class_names
    if names is None:
        return found
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{origin} has no folder {missing[0]!r}, which is one of model.class_names; it has "
            f"{', '.join(found)}"
        )
    return list(names)


def is_recording(path: Path) -> bool:
    """Return whether the name of a file ends as those of recordings do."""
    return path.suffix.lower() in EXTENSIONS
