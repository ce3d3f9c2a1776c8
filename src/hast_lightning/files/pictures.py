"""Untrusted pictures: archives and folders of them, read to pixels or refused in one line."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hast_lightning.errors import DataError, first_line
from hast_lightning.files.archives import require_bounded
from hast_lightning.files.pixels import as_shown

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of the files that are read, as torchvision's ImageFolder has them."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's name of pictures with so many channels."""
DECODERS = 4
"""Threads that decode: Pillow lets go of the interpreter meanwhile."""
AHEAD = 64
"""Pictures that are decoded before the first of them is stored."""


def read_arrays(path: Path, names: tuple[str, ...], origin: str) -> tuple[NDArray[Any], ...]:
    """Arrays of an .npz file; pickled Python objects in it are never loaded.

    Args:
        path: the file.
        names: of the arrays that are wanted; others are not read.
        origin: key and value that brought the file here, for messages.

    Raises:
        DataError: it is no such file, it is damaged, lacks an array or holds Python objects.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"{origin} is not an .npz file, or it is truncated")
        require_bounded(path)
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise DataError(
                    f"{origin} has no array {' and no array '.join(map(repr, missing))}; "
                    f"it has: {', '.join(archive.files) or 'nothing'}"
                )
            return tuple(archive[name] for name in names)
    except DataError:
        raise
    # Damaged archives raise a dozen types, from zlib's to MemoryError; each means the same here.
    except Exception as error:
        reason = first_line(error)
        if "Object arrays" in reason:
            reason = "it holds Python objects, which are refused since loading them can run code"
        raise DataError(f"{origin} cannot be read: {reason}") from error


def require_pixels(images: NDArray[Any], channels: int, origin: str) -> None:
    """Refuse an array ``x`` that is not uint8 of shape (N, H, W, channels), N at least 1.

    Raises:
        DataError: it is not.
    """
    if images.dtype != np.uint8:
        raise DataError(f"{origin}: x has type {images.dtype}; allowed: uint8 (pixels 0 to 255)")
    if images.ndim != 4:
        raise DataError(
            f"{origin}: x has shape {images.shape}; allowed: (images, height, width, channels)"
        )
    if not len(images):
        raise DataError(f"{origin}: x is empty; at least one image is needed")
    if images.shape[3] != channels:
        raise DataError(f"{origin}: x has {images.shape[3]} channels; the network takes {channels}")


def require_features(
    features: NDArray[Any], shape: tuple[int, int, int], origin: str
) -> NDArray[Any]:
    """Return the array ``x`` of features as (N, channels, frames, coefficients), float32.

    Args:
        features: Real numbers, (N, frames, coefficients, channels), or without the last axis where
            there is one channel.
        shape: (channels, frames, coefficients) that the network takes.
        origin: Of the array, for messages.

    Raises:
        DataError: it is no such array, it is empty, or it has values that are not finite.
    """
    channels, frames, coefficients = shape
    wanted = (frames, coefficients, channels)
    if features.dtype.kind not in "iuf":
        raise DataError(f"{origin}: x has type {features.dtype}; allowed: real numbers")
    if channels == 1 and features.ndim == 3:
        features = features[..., None]
    if features.shape[1:] != wanted:
        raise DataError(
            f"{origin}: x has shape {features.shape}; the network takes features of (N, frames, "
            f"coefficients, channels) = (N, {', '.join(map(str, wanted))})"
        )
    if not len(features):
        raise DataError(f"{origin}: x is empty; at least one sample is needed")
    found = np.ascontiguousarray(features.transpose(0, 3, 1, 2), np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"{origin}: x has values that are NaN or infinite")
    return found


def refuse_loops(root: Path, origin: str) -> None:
    """Refuse links to a folder above them: whoever follows links would go on without end.

    Raises:
        DataError: there is one.
    """
    for folder, children, _ in os.walk(root):
        for child in children:
            link = Path(folder) / child
            if link.is_symlink() and Path(folder).resolve().is_relative_to(link.resolve()):
                raise DataError(f"{origin} contains itself: {link} links to a folder above")


def find_pictures(root: Path, origin: str) -> list[Path]:
    """List the pictures below a folder, at any depth and behind links, in sorted order.

    Raises:
        DataError: there is none, or the folder contains itself.
    """
    return find_files(root, EXTENSIONS, "pictures", origin)


def find_files(root: Path, endings: tuple[str, ...], what: str, origin: str) -> list[Path]:
    """List the files with some endings below a folder, at any depth and behind links, sorted.

    Other files are passed over: lists and notes often lie beside them.

    Raises:
        DataError: there is none, or the folder contains itself.
    """
    refuse_loops(root, origin)
    found = sorted(
        Path(folder) / name
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.lower().endswith(endings)
    )
    if not found:
        raise DataError(f"{origin} has no {what}; allowed endings: {', '.join(endings)}")
    return found


class Fitting:
    """Brings pictures to a network's size, alike wherever pictures are read.

    One of another size is resized and its centre cropped, as torchvision's ``Resize`` and
    ``CenterCrop`` do it; one that has the size already, such as those of CIFAR, is what the network
    was trained on and stays as it is, to the pixel.

    Args:
        height: of the result, in pixels.
        width: of the result.
        ratio: the shorter side before the crop, as a multiple of the longer side of the result.
    """

    # Not by torchvision itself, which takes seconds to import: an exported file needs none of it.
    def __init__(self, height: int, width: int, ratio: float) -> None:
        self._size = (width, height)
        self._shorter = round(max(height, width) * ratio)

    def __call__(self, picture: Picture) -> Picture:
        """Return the picture in the size (height, width)."""
        if picture.size == self._size:
            return picture
        shorter = min(picture.size)
        width, height = (
            self._shorter if side == shorter else int(self._shorter * side / shorter)
            for side in picture.size
        )
        resized = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = map(_margin, resized.size, self._size)
        return resized.crop((left, top, left + self._size[0], top + self._size[1]))


def _margin(there: int, wanted: int) -> int:
    """Return where the centre begins; negative where there is less than wanted."""
    return round((there - wanted) / 2) if there >= wanted else -((wanted - there) // 2)


def open_picture(path: str | Path, mode: str = "RGB") -> Picture:
    """Read a whole picture into memory, as a viewer shows it (:func:`as_shown`).

    Args:
        path: the file.
        mode: Pillow's, one of :data:`MODES`.

    Raises:
        DataError: it is no picture, damaged, has more pixels than Pillow trusts, or pixels whose
            white nobody says.
    """
    try:
        # Opening a named pipe would wait for whoever writes to it.
        if not Path(path).is_file():
            raise DataError(f"{path} is not a file")
        with Image.open(path) as picture:
            _require_size(path, picture)
            return as_shown(picture, mode)
    except DataError:
        raise
    # Pillow's readers raise a dozen types where a file is damaged in an odd way.
    except Exception as error:
        raise DataError(f"{path} is not a readable picture: {first_line(error)}") from error


def shown_picture(picture: Picture, mode: str, origin: str) -> Picture:
    """Return a picture in memory as :func:`open_picture` would have read its file.

    Raises:
        DataError: its file is damaged, or nobody says which value of its pixels is white; the
            message begins with ``origin``.
    """
    try:
        return as_shown(picture, mode)
    # Pillow reads a file only now, and raises a dozen types where it is damaged.
    except Exception as error:
        reason = first_line(error)
        raise DataError(
            f"{origin}: a picture of mode {picture.mode} cannot be read: {reason}"
        ) from error


def normalized(
    picture: Picture, mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """Return a picture as a network takes it: shape (C, H, W).

    Args:
        picture: In one of :data:`MODES`.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
    """
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1).transpose(2, 0, 1)
    centre, spread = (np.array(part, np.float32).reshape(-1, 1, 1) for part in (mean, std))
    found: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - centre) / spread
    return found


def _require_size(path: str | Path, picture: Picture) -> None:
    """Pillow itself only warns up to twice its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise DataError(
            f"{path} has {picture.width}x{picture.height} pixels; at most {limit} are decoded"
        )


def decode(paths: list[Path], mode: str, prepare: Callable[[Picture], Picture]) -> NDArray[Any]:
    """Pixels of files, in order: uint8 (N, H, W, C).

    Only what ``prepare`` returns is kept, so memory is that of the result and of a few whole
    pictures.

    Args:
        paths: the files.
        mode: Pillow's, one of :data:`MODES`.
        prepare: brings every picture to one size.

    Raises:
        DataError: a file is no picture, damaged, or has more pixels than Pillow trusts.
    """

    def pixels(path: Path) -> NDArray[Any]:
        prepared = np.asarray(prepare(open_picture(path, mode)))
        return prepared[..., None] if prepared.ndim == 2 else prepared

    with ThreadPoolExecutor(DECODERS) as pool, warnings.catch_warnings():
        # Which comes before the refusal, and says the same.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return _stacked(_in_order(pool, pixels, paths), len(paths))


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Path], NDArray[Any]], paths: list[Path]
) -> Iterator[NDArray[Any]]:
    """As ``pool.map``, a few files ahead and not as many as there are."""
    for start in range(0, len(paths), AHEAD):
        yield from pool.map(work, paths[start : start + AHEAD])


def _stacked(parts: Iterator[NDArray[Any]], count: int) -> NDArray[Any]:
    """The parts in one array, without holding them twice."""
    first = next(parts)
    whole = np.empty((count, *first.shape), np.uint8)
    whole[0] = first
    for number, part in enumerate(parts, start=1):
        whole[number] = part
    return whole
