"""``command=predict``: classify images with an exported file, which is all that it needs.

How pictures are prepared for a network is the same in Python.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from hast_lightning.core.network import DIFFUSION, FEATURES, TOKENS
from hast_lightning.data.recordings import is_recording, read_features, require_torchaudio
from hast_lightning.errors import DataError, StorageError
from hast_lightning.export.artifact import Network, open_artifact
from hast_lightning.export.description import Description
from hast_lightning.files.pictures import (
    MODES,
    Fitting,
    find_pictures,
    normalized,
    open_picture,
    read_arrays,
    require_features,
    shown_picture,
)
from hast_lightning.files.sounds import find_sounds

HEADER = ("file", "class_index", "class_name", "probability")
BATCH = 32
_NAMES_SHOWN = 3

Row = tuple[str, int, str, str]
Picture = Image.Image | Path
"""A picture in memory, or the file of one or of a recording."""
_P = TypeVar("_P", bound=Picture)


def predict(artifact: Path, images: Path, target: Path | None) -> None:
    """Write a CSV table with the predicted class of every image.

    Images that cannot be read are left out; the others are written, and then an error names
    what is missing.

    Args:
        artifact: An exported file; its description says how images are prepared.
        images: A folder, which is searched with all below it, or one image; of features
            recordings likewise where the file has a front end, or an .npz file with ``x``, whose
            rows are named by their numbers.
        target: The CSV file, replaced in one move; none: standard output.

    Raises:
        UserError: the artifact cannot be used, there are no images, some cannot be read, or the
            table cannot be written.
    """
    network, description = open_artifact(artifact)
    if description.outputs is not None:
        raise DataError(
            f"artifact={artifact} puts out several tensors ({description.outputs.in_words}), and "
            "no class: use it in Python (docs/detectors.md)"
        )
    if description.modality == DIFFUSION:
        raise DataError(
            f"artifact={artifact} predicts the noise of a picture at a timestep, and no class: use "
            "it in Python (docs/diffusion.md)"
        )
    if description.modality == TOKENS:
        raise DataError(
            f"artifact={artifact}: the network says what comes next in texts of "
            f"{description.input_shape[0]} tokens, and command=predict classifies pictures and "
            "features: call it in Python, as docs/language-models.md shows"
        )
    if description.modality == FEATURES and not _hears(images, description):
        samples = feature_batches(images, description, f"images={images}")
        _write(list(_rows(network, description, _numbered(samples))), target)
        return
    files = sample_files(images, description, f"images={images}")
    unreadable: dict[str, str] = {}
    prepared = _readable(description, files, images, unreadable)
    rows = list(_rows(network, description, prepared))
    _write(rows, target)
    if unreadable:
        names = list(unreadable)
        shown = ", ".join([*names[:_NAMES_SHOWN], *["..."] * (len(names) > _NAMES_SHOWN)])
        what = "images" if description.front_end is None else "recordings"
        raise DataError(
            f"{len(names)} of {len(files)} files in images={images} could not be read as "
            f"{what}: {shown}; {_rest(len(rows))}; {unreadable[names[0]]}"
        )


def _rest(count: int) -> str:
    """Return what to say of the images that could be read."""
    if count == 0:
        return "the table has no rows"
    return "the other one is in the table" if count == 1 else f"the other {count} are in the table"


def _hears(images: Path, description: Description) -> bool:
    """Return whether they are recordings, which the network of features has a front end for.

    Raises:
        DataError: they are, and it has none.
    """
    if description.front_end is not None:
        return images.is_dir() or is_recording(images)
    if is_recording(images):
        raise DataError(
            f"images={images} is a recording, and the exported file does not say how features are "
            "made of one (model.front_end.sample_rate was not set): hand in an .npz file with x"
        )
    return False


def sample_files(images: Path, description: Description, origin: str) -> list[Path]:
    """Return the picture at ``images``, or all below the folder there, in sorted order.

    Where the network has a front end they are recordings.

    Raises:
        DataError: there is nothing, or no such file in the folder.
    """
    hears = description.front_end is not None
    if images.is_file():
        return [images]
    if not images.is_dir():
        what = "recordings, or a recording" if hears else "images, or an image"
        raise DataError(f"{origin} does not exist; expected a folder of {what}")
    return (find_sounds if hears else find_pictures)(images, origin)


def picture_batches(pictures: Sequence[Picture], description: Description) -> Iterator[Tensor]:
    """Yield pictures as the network takes them: normalized, (B, C, H, W) float32, in order.

    Files are of recordings where the network has a front end.

    Raises:
        ConfigurationError: torchaudio is not installed, and there are recordings.
        DataError: one cannot be read, or the network takes none.
    """
    read = _reading(description)
    for chunk in _batches(pictures):
        yield torch.stack([read(picture) for picture in chunk])


def feature_batches(path: Path, description: Description, origin: str) -> Iterator[Tensor]:
    """Return the features of an .npz file as the network takes them, (B, C, H, W), in order.

    Raises:
        DataError: there is no such file, or it does not fit the network.
    """
    if not path.is_file():
        raise DataError(f"{origin} is no file; the network takes features: an .npz file with x")
    (values,) = read_arrays(path, ("x",), origin)
    samples = torch.from_numpy(require_features(values, description.input_shape, origin))
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (description.mean, description.std))
    return ((part - mean) / std for part in torch.split(samples, BATCH))


def _numbered(batches: Iterator[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield samples by their numbers, from 0."""
    numbers = count()
    for batch in batches:
        yield {str(next(numbers)): sample for sample in batch}


def _rows(
    network: Network, description: Description, prepared: Iterator[dict[str, Tensor]]
) -> Iterator[Row]:
    """Yield a row for every sample (C, H, W), which have names."""
    names = description.class_names
    for tensors in prepared:
        outputs = network(torch.stack(list(tensors.values())))
        if outputs.dim() > 2:
            raise DataError(
                "predict is for classifiers, and this network puts out maps: call it in Python"
            )
        best = description.probabilities(outputs).max(dim=1)
        probabilities, classes = (part.tolist() for part in best)
        for name, index, probability in zip(tensors, classes, probabilities, strict=True):
            yield name, index, names[index] if names else "", f"{probability:.6f}"


def _readable(
    description: Description, files: Sequence[Path], root: Path, unreadable: dict[str, str]
) -> Iterator[dict[str, Tensor]]:
    """Yield some samples at a time, by name; ``unreadable`` gets why some cannot be read."""
    read = _reading(description)
    for chunk in _batches(files):
        tensors: dict[str, Tensor] = {}
        for path in chunk:
            name = path.name if path == root else str(path.relative_to(root))
            # A name that is no text cannot be written.
            name = os.fsencode(name).decode("utf-8", "backslashreplace")
            try:
                tensors[name] = read(path)
            except DataError as error:
                unreadable[name] = str(error)
        if tensors:
            yield tensors


def _batches(pictures: Sequence[_P]) -> Iterator[Sequence[_P]]:
    for start in range(0, len(pictures), BATCH):
        yield pictures[start : start + BATCH]


def _reading(description: Description) -> Callable[[Picture], Tensor]:
    """Return a function from a sample to a normalized tensor (C, H, W), as in the evaluation.

    Raises:
        ConfigurationError: torchaudio is not installed, and the network hears.
        DataError: there are no such samples.
    """
    if description.front_end is not None:
        require_torchaudio()
        return partial(_heard, description)
    prepare, mode = _preparation(description), MODES[description.input_shape[0]]

    def read(picture: Picture) -> Tensor:
        if isinstance(picture, Path):
            return prepare(open_picture(picture, mode))
        return prepare(shown_picture(picture, mode, "predict"))

    return read


def _heard(description: Description, recording: Picture) -> Tensor:
    front_end = description.front_end
    if front_end is None or not isinstance(recording, Path):
        raise DataError("the network takes recordings or features, not pictures")
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (description.mean, description.std))
    return (read_features(recording, front_end) - mean) / std


def _preparation(description: Description) -> Callable[[Image.Image], Tensor]:
    """Return a function from a Pillow image to a normalized tensor (C, H, W), as in the evaluation.

    Raises:
        DataError: images of so many channels are not in files.
    """
    if len(description.input_shape) != 3:
        raise DataError(f"the network takes no images, but inputs of {description.input_shape}")
    channels, height, width = description.input_shape
    if description.modality == FEATURES:
        raise DataError("the network takes features, not pictures: hand them in as numbers")
    if channels not in MODES:
        raise DataError(f"the network takes images of {channels} channels; image files have 1 or 3")
    fit = Fitting(height, width, description.resize_ratio)
    mean, std = description.mean, description.std
    return lambda picture: torch.from_numpy(normalized(fit(picture), mean, std))


def _write(rows: Sequence[Row], target: Path | None) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(rows)
    if target is None:
        sys.stdout.write(text.getvalue())
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text.getvalue(), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise StorageError(f"predictions={target} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):  # the first error says more
            temporary.unlink(missing_ok=True)
