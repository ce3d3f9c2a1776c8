"""Untrusted recordings: .wav files, read to samples or refused in one line.

The reader is our own, since it decides from the header alone, before samples are in memory, and
reads the same in every version of Python. Nothing but the header and the samples is looked at.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hast_lightning.errors import DataError
from hast_lightning.files.pictures import find_files

EXTENSIONS = (".wav", ".wave")
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
"""Tags of a format; behind the last one, another tag follows in the header."""
WIDTHS = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}
"""Bits of a sample that are read."""
MOST_CHANNELS = 8
MOST_CHUNKS = 64
"""Parts of a file that are passed over in search of its samples; there are seldom more than 4."""
HEAD, FORMAT = struct.Struct("<4sI"), struct.Struct("<HHIIHH")
SUBFORMAT = 24
"""Where in an extensible header the other tag stands."""


class Header(NamedTuple):
    """What a file says of its samples.

    Attributes:
        tag: ``PCM`` or ``FLOAT``.
        channels: samples at one time.
        rate: times a second.
        bits: of a sample.
    """

    tag: int
    channels: int
    rate: int
    bits: int

    @property
    def width(self) -> int:
        """Return the bytes of the samples at one time."""
        return self.channels * self.bits // 8


def find_sounds(root: Path, origin: str) -> list[Path]:
    """List the recordings below a folder, at any depth and behind links, in sorted order.

    Raises:
        DataError: there is none, or the folder contains itself.
    """
    return find_files(root, EXTENSIONS, "recordings", origin)


def read_sound(path: Path, sample_rate: int, samples: int) -> NDArray[np.float64]:
    """Return a recording as samples (n,) in [-1, 1], n at most ``samples``: its channels' mean.

    Integers of w bits are divided by 2^(w-1); those of 8 bits have their zero at 128. Floats
    are taken as they are.

    Args:
        path: A .wav file: PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64.
        sample_rate: That it must have.
        samples: Most that it may have, in each channel.

    Raises:
        DataError: it is no such file, damaged, of another rate, longer, or of another encoding.
    """
    try:
        # Opening a named pipe would wait for whoever writes to it.
        if not path.is_file():
            raise DataError(f"{path} is not a file")
        with path.open("rb") as file:
            header, size = _find_samples(file, path)
            _require(header, size, path, sample_rate, samples)
            data = file.read(size - size % header.width)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) < size - size % header.width:
        raise DataError(f"{path} is truncated: it announces {size} bytes and has {len(data)}")
    values: NDArray[np.float64]
    values = _decoded(data, header).reshape(-1, header.channels).mean(axis=1)
    if not np.isfinite(values).all():
        raise DataError(f"{path} has samples that are NaN or infinite")
    return values


def _find_samples(file: BinaryIO, path: Path) -> tuple[Header, int]:
    """Return the header and the bytes of the samples, with the file standing before them."""
    kind, _ = _head(file, path)
    if kind != b"RIFF" or file.read(4) != b"WAVE":
        raise DataError(f"{path} is not a .wav file (RIFF, WAVE)")
    header: Header | None = None
    for _ in range(MOST_CHUNKS):
        kind, size = _head(file, path)
        if kind == b"data":
            if header is None:
                raise DataError(f"{path} has samples before it says of what kind they are")
            return header, size
        start = file.tell()
        if kind == b"fmt ":
            header = _header(file.read(min(size, SUBFORMAT + 2)), path)
        file.seek(start + size + size % 2)
    raise DataError(f"{path} has no samples among its first {MOST_CHUNKS} parts")


def _head(file: BinaryIO, path: Path) -> tuple[bytes, int]:
    found = file.read(HEAD.size)
    if len(found) < HEAD.size:
        raise DataError(f"{path} is not a .wav file, or it is truncated")
    kind, size = HEAD.unpack(found)
    return kind, size


def _header(content: bytes, path: Path) -> Header:
    if len(content) < FORMAT.size:
        raise DataError(f"{path} has a damaged header")
    tag, channels, rate, _, width, bits = FORMAT.unpack(content[: FORMAT.size])
    if tag == EXTENSIBLE and len(content) >= SUBFORMAT + 2:
        (tag,) = struct.unpack_from("<H", content, SUBFORMAT)
    if bits not in WIDTHS.get(tag, ()):
        raise DataError(
            f"{path} has samples of encoding {tag} with {bits} bits; allowed: PCM of 8, 16, 24 or "
            "32 bits (encoding 1), and floats of 32 or 64 (encoding 3)"
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise DataError(f"{path} has {channels} channels; allowed: 1 to {MOST_CHANNELS}")
    header = Header(tag, channels, rate, bits)
    if width != header.width:
        raise DataError(f"{path} has a damaged header: {channels} times {bits} bits in {width} B")
    return header


def _require(header: Header, size: int, path: Path, sample_rate: int, samples: int) -> None:
    """Refuse what the network does not hear, before samples are read."""
    if header.rate != sample_rate:
        raise DataError(
            f"{path} has {header.rate} samples a second; the network hears {sample_rate}: convert "
            "it (sox and ffmpeg do), which is a choice of filters that is not made here"
        )
    found = size // header.width
    if not found:
        raise DataError(f"{path} has no samples")
    if found > samples:
        raise DataError(
            f"{path} has {found / sample_rate:.4g} seconds; the network hears "
            f"{samples / sample_rate:.4g}: cut it"
        )


def _decoded(data: bytes, header: Header) -> NDArray[np.float64]:
    """Return all samples of all channels in turn."""
    if header.tag == FLOAT:
        return np.frombuffer(data, f"<f{header.bits // 8}").astype(np.float64)
    if header.bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    if header.bits == 24:
        # As the upper bytes of 32 bits, so that the sign is where it belongs.
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(data, f"<i{header.bits // 8}") / 2.0 ** (header.bits - 1)
