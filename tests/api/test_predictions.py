"""Whatever may be called images is classified alike, and what is none is refused in one line."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hast_lightning import Prediction, QuantizedModel
from hast_lightning.errors import DataError, UserError
from hast_lightning.runs.prediction import predict

COUNT = 40
"""More than the pictures of one batch."""


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (COUNT, 1, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def folder(pixels: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    (made / "below").mkdir()
    (made / "notes.txt").write_text("no picture")
    for index, image in enumerate(pixels):
        place = made / "below" if index % 2 else made
        Image.fromarray(image[0].numpy()).save(place / f"{index:02d}.png")
    return made


def in_order(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"), key=lambda path: path.name)


def picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image[0].numpy())


NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "bytes": lambda x: x,
    "floats": lambda x: (x.float() / 255 - 0.5) / 0.5,
    "array": lambda x: x.numpy(),
    "list of tensors": list,
    "list of arrays": lambda x: list(x.numpy()),
    "pictures": lambda x: [picture(image) for image in x],
    "pictures in colour": lambda x: [picture(image).convert("RGB") for image in x],
}


@pytest.mark.parametrize("form", NUMBERS.values(), ids=NUMBERS)
def test_many_images(quantized: QuantizedModel, pixels: Tensor, form: Callable[..., Any]) -> None:
    logits, labels = quantized.predict(form(pixels))
    assert torch.allclose(logits, quantized.predict(pixels).logits, atol=1e-4)
    assert labels.shape == (COUNT,)


@pytest.mark.parametrize(
    "form",
    [lambda x: x, lambda x: x.numpy(), picture, lambda x: [x], lambda x: [picture(x)]],
    ids=["tensor", "array", "picture", "list of one", "list of one picture"],
)
def test_a_single_image(
    quantized: QuantizedModel, pixels: Tensor, form: Callable[..., Any]
) -> None:
    found = quantized.predict(form(pixels[3]))
    assert torch.allclose(found.logits, quantized.predict(pixels[3:4]).logits, atol=1e-4)


def test_files_and_folders(quantized: QuantizedModel, pixels: Tensor, folder: Path) -> None:
    files = in_order(folder)
    expected = quantized.predict(pixels).logits
    listed = quantized.predict([*files[:20], *map(str, files[20:])])
    assert torch.allclose(listed.logits, expected, atol=1e-4)
    one = quantized.predict(str(files[7]))
    assert torch.allclose(one.logits, expected[7:8], atol=1e-4)
    mixed = quantized.predict([picture(pixels[0]), files[1]])
    assert torch.allclose(mixed.logits, expected[:2], atol=1e-4)
    # In the order of their paths, those in a folder's folders among them.
    order = sorted(range(COUNT), key=lambda index: str(files[index]))
    assert torch.allclose(quantized.predict(folder).logits, expected[order], atol=1e-4)


def test_a_folder_is_what_it_is_to_the_command(
    quantized: QuantizedModel, folder: Path, tmp_path: Path
) -> None:
    predict(quantized.save(tmp_path / "student.safetensors"), folder, tmp_path / "table.csv")
    rows = [line.split(",") for line in (tmp_path / "table.csv").read_text().splitlines()[1:]]
    found = quantized.predict(folder)
    assert [int(row[1]) for row in rows] == found.labels.tolist()
    assert [float(row[3]) for row in rows] == pytest.approx(
        found.probabilities.max(dim=1).values.tolist(), abs=1e-6
    )


def test_probabilities_and_names(quantized: QuantizedModel, pixels: Tensor) -> None:
    names = tuple(f"class {label}" for label in range(10))
    described = replace(quantized.description, class_names=names)
    found = QuantizedModel(quantized.network, described).predict(pixels)
    assert torch.allclose(found.probabilities.sum(dim=1), torch.ones(COUNT))
    assert torch.equal(found.probabilities.argmax(dim=1), found.labels)
    assert found.class_names == [f"class {label}" for label in found.labels.tolist()]
    assert quantized.predict(pixels).class_names is None


def test_a_prediction_is_still_a_pair(quantized: QuantizedModel, pixels: Tensor) -> None:
    found = quantized.predict(pixels)
    logits, labels = found
    assert isinstance(found, tuple)
    assert len(found) == 2
    assert found.logits is logits is found[0]
    assert found.labels is labels
    assert repr(found).startswith("Prediction(logits=")
    named = replace(quantized.description, class_names=tuple("abcdefghij"))
    again: Prediction = pickle.loads(pickle.dumps(Prediction.of(logits, named)))
    assert again.class_names == ["abcdefghij"[label] for label in labels.tolist()]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 1, 8, 8), float("nan")), "predict: images have NaN or infinite values"),
        (np.full((1, 8, 8), np.inf), "predict: images have NaN or infinite values"),
        (torch.zeros(0, 1, 8, 8), "there are no images"),
        ([], "there are no images"),
        (torch.zeros(8, 8), "images of shape (8, 8)"),
        (torch.zeros(3, 8, 8), "images of shape (1, 3, 8, 8); the network takes (N, 1, 8, 8)"),
        (torch.zeros(1, 8, 8, dtype=torch.int64), "images of type torch.int64"),
        ([torch.zeros(1, 8, 8), torch.zeros(1, 7, 8)], "a list of images that are no batch"),
        ([torch.zeros(1, 8, 8), None], "a NoneType is no tensor"),
        (
            [torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)],
            "a list of images of several types, bytes and floats",
        ),
        ("", "predict: '' is no path"),
        ([Image.new("L", (8, 8)), torch.zeros(1, 8, 8)], "a list of pictures must hold nothing"),
        ("missing.png", "predict: missing.png does not exist; expected a folder of images"),
        (["missing.png"], "predict: missing.png does not exist"),
        (None, "a NoneType is no tensor"),
        (3, "a single number is no batch"),
    ],
)
def test_what_is_no_image_is_one_line(quantized: QuantizedModel, images: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as refusal:
        quantized.predict(images)
    assert "\n" not in str(refusal.value)


def test_pictures_that_cannot_be_read_are_named(
    quantized: QuantizedModel, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has no pictures; allowed endings"):
        quantized.predict(tmp_path)
    whole = in_order(folder)[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.png is not a readable picture") as refusal:
        quantized.predict(tmp_path)
    assert "\n" not in str(refusal.value)
    # Pillow looks at the header alone until the pixels are asked for.
    with pytest.raises(UserError, match="a picture of mode L cannot be read"):
        quantized.predict(Image.open(tmp_path / "cut.png"))
