from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision.datasets import CIFAR10

from hast_lightning.config import DataConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.data.evaluation import EvaluationData, digits, load_evaluation_data
from hast_lightning.errors import DataError
from tests.real_data import cifar10_folder

CIFAR_MEAN = (0.485, 0.456, 0.406)
CIFAR_STD = (0.229, 0.224, 0.225)


def pretrained(input_shape: tuple[int, int, int] = (3, 6, 4)) -> PretrainedNetwork:
    """A network of ten classes, of which evaluation data only ask what it takes as input."""
    gray = input_shape[0] == 1
    return PretrainedNetwork(
        network=nn.Identity(),
        name="stand-in",
        input_shape=input_shape,
        num_classes=10,
        mean=(0.5,) if gray else CIFAR_MEAN,
        std=(0.5,) if gray else CIFAR_STD,
        checksum="",
    )


def images(count: int = 5, height: int = 6, width: int = 4, channels: int = 3) -> np.ndarray:
    shape = (count, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def labels(count: int = 5) -> np.ndarray:
    return np.arange(count) % 10


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "evaluation.npz"
    np.savez(path, **arrays)
    return path


def load_npz(path: Path, batch_size: int = 256, **shape: Any) -> EvaluationData:
    config = DataConfig(source="npz", path=str(path), batch_size=batch_size)
    data = load_evaluation_data(config, pretrained(**shape))
    assert data is not None
    return data


def refusal(path: Path, **shape: Any) -> str:
    """The message with which the file is refused: one line that names the key and the file."""
    with pytest.raises(DataError) as raised:
        load_npz(path, **shape)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"data.path={path}")
    return message.removeprefix(f"data.path={path}").removeprefix(":").strip()


# What is read


def test_no_source_gives_no_data() -> None:
    assert load_evaluation_data(DataConfig(source="none", holdout=0.1), pretrained()) is None


def test_digits_are_the_held_out_third_between_minus_one_and_one() -> None:
    network = pretrained(input_shape=(1, 8, 8))
    data = load_evaluation_data(DataConfig(source="digits", batch_size=100), network)
    assert data is not None
    pixels, expected_labels = load_digits(return_X_y=True)
    expected = torch.tensor(pixels[::3] / 16 * 2 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    batches = list(data)
    assert len(batches) == 6
    torch.testing.assert_close(torch.cat([batch for batch, _ in batches]), expected)
    assert torch.cat([batch for _, batch in batches]).tolist() == expected_labels[::3].tolist()


def test_digits_are_divided_between_training_and_evaluation_without_overlap() -> None:
    (held_out, held_out_labels), (others, other_labels) = (
        digits(held_out=chosen) for chosen in (True, False)
    )
    assert held_out.shape == (599, 8, 8, 1)
    assert others.shape == (1198, 8, 8, 1)
    assert held_out.dtype == others.dtype == np.uint8
    pixels, all_labels = load_digits(return_X_y=True)
    assert held_out.sum() + others.sum(dtype=int) == pixels.sum()
    assert np.array_equal(others[:2, ..., 0].reshape(2, 64), pixels[1:3])
    assert len(held_out_labels) + len(other_labels) == len(all_labels)


def test_npz_images_are_normalized_by_the_network_s_mean_and_deviation(tmp_path: Path) -> None:
    x, y = images(), labels()
    data = load_npz(save(tmp_path, x=x, y=y), batch_size=2)
    assert data.images.dtype == torch.uint8
    batches = list(data)
    assert [len(batch) for _, batch in batches] == [2, 2, 1]
    expected = (x / 255 - np.array(CIFAR_MEAN)) / np.array(CIFAR_STD)
    actual = torch.cat([batch for batch, _ in batches])
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert batches[0][1].dtype == torch.int64
    assert torch.cat([batch for _, batch in batches]).tolist() == y.tolist()


def test_every_iteration_yields_the_same_batches_and_leaves_the_bytes_alone(tmp_path: Path) -> None:
    data = load_npz(save(tmp_path, x=images(), y=labels()))
    before = data.images.clone()
    first, second = (next(iter(data))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(data.images, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.dtype(">i4")])
def test_labels_of_any_integer_type_become_int64(tmp_path: Path, dtype: Any) -> None:
    data = load_npz(save(tmp_path, x=images(), y=labels().astype(dtype)))
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == [0, 1, 2, 3, 4]


def test_a_compressed_file_with_further_arrays_is_read(tmp_path: Path) -> None:
    path = tmp_path / "compressed.npz"
    np.savez_compressed(path, x=images(), y=labels(), names=np.array(list("abcde")))
    assert len(load_npz(path).labels) == 5


def test_the_first_cifar_10_test_images_are_read() -> None:
    path = cifar10_folder() / "cifar10_test_first1017.npz"
    data = load_npz(path, input_shape=(3, 32, 32))
    assert sum(len(batch) for _, batch in data) == 1017
    assert data.images.shape == (1017, 3, 32, 32)
    # The official test batch opens with a cat, a ship, a ship and an airplane.
    assert data.labels[:4].tolist() == [3, 8, 8, 0]


# What is refused: the file


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.npz") == "does not exist; expected an .npz file"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "is a folder; expected an .npz file"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = save(tmp_path, x=images(), y=labels())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path) == "is not an .npz file, or it is truncated"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    x = images(count=500)
    path = save(tmp_path, x=x, y=labels(500))
    content = bytearray(path.read_bytes())
    content[5000:5004] = b"\0\1\2\3"  # inside the pixels: zip notices it by its checksum
    path.write_bytes(content)
    assert refusal(path).startswith("cannot be read: Bad CRC-32")


@pytest.mark.parametrize("content", [b"x,y\n1,2\n", pickle.dumps({"x": 1})])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evaluation.npz"
    path.write_bytes(content)
    assert refusal(path) == "is not an .npz file, or it is truncated"


class Trap:
    """An object that, where it is unpickled, leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", ["x", "y"])
def test_python_objects_are_refused_without_being_unpickled(tmp_path: Path, key: str) -> None:
    sprung = tmp_path / "sprung"
    arrays = {"x": images(), "y": labels(), key: np.array([Trap(sprung)] * 5, dtype=object)}
    path = save(tmp_path, **arrays)
    assert "holds Python objects, which are refused" in refusal(path)
    assert not sprung.exists()
    # The trap itself works: had anything unpickled the array, the file would be there.
    with np.load(path, allow_pickle=True) as archive:
        archive[key]
    assert sprung.exists()


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    assert refusal(save(tmp_path, x=images())) == "has no array 'y'; it has: x"
    message = refusal(save(tmp_path, images=images(), labels=labels()))
    assert message == "has no array 'x' and no array 'y'; it has: images, labels"
    assert refusal(save(tmp_path)) == "has no array 'x' and no array 'y'; it has: nothing"


# What is refused: the arrays

BAD_IMAGES: dict[str, tuple[np.ndarray, str]] = {
    "empty": (images(count=0), "x is empty; at least one image is needed"),
    "no channels": (images()[..., 0], r"x has shape \(5, 6, 4\); allowed: \(images, height"),
    "one image": (images()[0], r"x has shape \(6, 4, 3\)"),
    "floats": (images() / 255, r"x has type float64; allowed: uint8 \(pixels 0 to 255\)"),
    "wide integers": (images().astype(np.int64), "x has type int64; allowed: uint8"),
    "gray": (images(channels=1), "x has 1 channels; the network takes 3"),
    "channels first": (images().transpose(0, 3, 1, 2), "x has 4 channels; the network takes 3"),
    "too high": (images(height=7), r"x has images of 7x4 pixels .*; the network takes 6x4"),
    "too narrow": (images(width=3), r"x has images of 6x3 pixels .*; the network takes 6x4"),
}


@pytest.mark.parametrize(("x", "expected"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_unfit_images_are_refused(tmp_path: Path, x: np.ndarray, expected: str) -> None:
    message = refusal(save(tmp_path, x=x, y=labels(len(x))))
    assert re.match(expected, message), message


BAD_LABELS: dict[str, tuple[np.ndarray, str]] = {
    "too few": (labels(4), r"y has shape \(4,\); allowed: \(5,\), one label an image"),
    "one-hot": (np.eye(10, dtype=int)[:5], r"y has shape \(5, 10\); allowed: \(5,\)"),
    "single": (np.array(3), r"y has shape \(\); allowed: \(5,\)"),
    "floats": (labels().astype(np.float32), "y has type float32; allowed: integers"),
    "names": (np.array(list("abcde")), "y has type <U1; allowed: integers"),
    "truth values": (labels() > 2, "y has type bool; allowed: integers"),
    "negative": (labels() - 1, "y has labels from -1 to 3; the network knows 0 to 9"),
    "from one to ten": (labels() + 6, "y has labels from 6 to 10; the network knows 0 to 9"),
    "beyond int64": (
        np.array([0, 1, 2, 3, 2**64 - 1], dtype=np.uint64),
        f"y has labels from 0 to {2**64 - 1}; the network knows 0 to 9",
    ),
}


@pytest.mark.parametrize(("y", "expected"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_unfit_labels_are_refused(tmp_path: Path, y: np.ndarray, expected: str) -> None:
    message = refusal(save(tmp_path, x=images(), y=y))
    assert re.match(expected, message), message


def test_digits_are_refused_for_a_network_of_another_input() -> None:
    with pytest.raises(DataError, match=r"^data=digits: x has 1 channels; the network takes 3$"):
        load_evaluation_data(DataConfig(source="digits"), pretrained())


# CIFAR-10 in torchvision's layout


def load_cifar10(path: Path | None) -> EvaluationData | None:
    config = DataConfig(source="cifar10", path=None if path is None else str(path))
    return load_evaluation_data(config, pretrained(input_shape=(3, 32, 32)))


def lay_out_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write three images in CIFAR-10's format and make torchvision expect their checksums."""
    planes = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    contents = {
        "test_batch": {"data": planes, "labels": [3, 8, 0]},
        "batches.meta": {"label_names": [str(label) for label in range(10)]},
    }
    (folder / CIFAR10.base_folder).mkdir()
    checksums = {}
    for name, content in contents.items():
        written = pickle.dumps(content)
        (folder / CIFAR10.base_folder / name).write_bytes(written)
        checksums[name] = hashlib.md5(written).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", checksums["test_batch"]]])
    meta = {**CIFAR10.meta, "filename": "batches.meta", "md5": checksums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return planes.reshape(3, 3, 32, 32)


def test_cifar10_is_read_from_torchvision_s_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lay_out_cifar10(tmp_path, monkeypatch)
    data = load_cifar10(tmp_path)
    assert data is not None
    assert np.array_equal(data.images.numpy(), expected)
    assert data.labels.tolist() == [3, 8, 0]


def test_a_damaged_cifar10_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out_cifar10(tmp_path, monkeypatch)
    (tmp_path / CIFAR10.base_folder / "test_batch").write_bytes(b"other")
    with pytest.raises(DataError, match="has no complete cifar-10-batches-py"):
        load_cifar10(tmp_path)


def test_a_folder_without_cifar10_is_refused_and_nothing_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        load_cifar10(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"data.path={tmp_path} has no complete cifar-10-batches-py")
    assert f"CIFAR10({str(tmp_path)!r}, download=True)" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_cifar10_needs_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.path is not set: data=cifar10 needs"):
        load_cifar10(None)
    with pytest.raises(DataError, match="does not exist; expected the folder"):
        load_cifar10(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder; expected the folder"):
        load_cifar10(tmp_path / "file")
