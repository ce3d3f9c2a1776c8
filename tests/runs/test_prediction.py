"""``command=predict``: images in, a table out, with nothing but an exported file."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from hast_lightning.data.evaluation import DIGITS_WHITE, digits
from hast_lightning.errors import DataError
from hast_lightning.export.artifact import FORMATS, write_artifact
from hast_lightning.export.description import Description
from hast_lightning.export.frozen import freeze
from hast_lightning.models import zoo
from hast_lightning.runs.prediction import HEADER, predict
from tests.command_line import call
from tests.export.families import calibrated, family, noise
from tests.export.test_packed import DESCRIPTION
from tests.small_runs import small

COUNT = 20
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the bundled network in every format, and digits as image files."""
    folder = tmp_path_factory.mktemp("made")
    pretrained = zoo.load(small().model)
    pixels, labels = digits(held_out=True)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / DIGITS_WHITE
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (pretrained.mean, pretrained.std))
    student = calibrated(pretrained.network, 8, images=(images - mean) / std)
    description = Description(
        network=pretrained.name,
        teacher_checksum=pretrained.checksum,
        recipe="digits",
        seed=0,
        quantizer={},
        input_shape=pretrained.input_shape,
        num_classes=10,
        mean=pretrained.mean,
        std=pretrained.std,
        resize_ratio=1.0,
        class_names=NAMES,
    )
    for name, kind in FORMATS.items():
        write_artifact(name, freeze(student), description, folder / f"student{kind.suffix}")
    for index in range(COUNT):
        place = folder / "images" / ("few" if index < 3 else "many")
        place.mkdir(parents=True, exist_ok=True)
        grey = (pixels[index, :, :, 0] * (255 / DIGITS_WHITE)).round().astype("uint8")
        Image.fromarray(grey).save(place / f"{index:02d}_is_{labels[index]}.png")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_digits_are_recognized_in_every_format(made: Path, kind: object, tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    predict(made / f"student{kind.suffix}", made / "images", target)  # type: ignore[attr-defined]
    table = rows(target.read_text())
    assert tuple(table[0]) == HEADER
    assert [row["file"] for row in table] == sorted(
        str(path.relative_to(made / "images")) for path in (made / "images").rglob("*.png")
    )
    right = [row["file"].endswith(f"_{row['class_index']}.png") for row in table]
    assert sum(right) >= COUNT - 1
    assert table[0]["class_name"] == "zero"
    assert all(0.1 <= float(row["probability"]) <= 1 for row in table)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_the_command_prints_the_table_and_leaves_nothing(made: Path, tmp_path: Path) -> None:
    finished = call(
        "command=predict",
        f"artifact={made / 'student.safetensors'}",
        f"images={made / 'images' / 'few'}",
        folder=tmp_path,
    )
    assert (finished.status, finished.err) == (0, "")
    assert len(rows(finished.out)) == 3
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_images_that_cannot_be_read_are_named_and_the_others_kept(
    made: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    whole = next((made / "images").rglob("*.png")).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "good.png").write_bytes(whole)
    (tmp_path / "notes.txt").write_text("not an image, and not taken for one")
    line = call(
        "command=predict",
        f"artifact={made / 'student.safetensors'}",
        f"images={tmp_path}",
        "predictions=table.csv",
        folder=tmp_path,
    ).refusal()
    assert line == (
        f"2 of 3 files in images={tmp_path} could not be read as images: bad.png, cut.png; the "
        f"other one is in the table; {tmp_path}/bad.png is not a readable picture: cannot identify "
        f"image file '{tmp_path}/bad.png'"
    )
    assert [row["file"] for row in rows((tmp_path / "table.csv").read_text())] == ["good.png"]


def test_a_name_that_is_no_text_is_written_all_the_same(made: Path, tmp_path: Path) -> None:
    whole = next((made / "images").rglob("*.png")).read_bytes()
    folder = tmp_path / "pictures"
    folder.mkdir()
    # As archives of other systems have it.
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(whole)
    words = (
        f"artifact={made / 'student.safetensors'}",
        f"images={folder}",
        "predictions=table.csv",
    )
    assert call("command=predict", *words, folder=tmp_path).status == 0
    table = rows((tmp_path / "table.csv").read_text(encoding="utf-8"))
    assert [row["file"] for row in table] == ["caf\\xe9.png"]


def test_where_no_image_can_be_read_no_others_are_spoken_of(made: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    for images in (tmp_path, tmp_path / "bad.png"):
        with pytest.raises(DataError, match=r"as images: bad\.png; the table has no rows; "):
            predict(made / "student.safetensors", images, tmp_path / "table.csv")
        assert rows((tmp_path / "table.csv").read_text()) == []


def test_photographs_are_resized_and_cropped_as_in_the_evaluation(tmp_path: Path) -> None:
    """Against torchvision's own steps on a photograph that is larger and not square."""
    from dataclasses import replace

    from torchvision import transforms

    student = calibrated(family("cifar_resnet"), 8)
    description = replace(DESCRIPTION, resize_ratio=1.25)
    write_artifact("packed", freeze(student), description, tmp_path / "student.safetensors")
    pixels = (noise(3, 50, 90).sigmoid() * 255).to(torch.uint8)
    photograph = transforms.functional.to_pil_image(pixels)
    photograph.save(tmp_path / "photograph.png")
    prepare = transforms.Compose(
        [
            transforms.Resize(40),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(description.mean, description.std),
        ]
    )
    with torch.no_grad():
        probabilities = student(prepare(photograph)[None]).softmax(dim=1)[0]
    predict(tmp_path / "student.safetensors", tmp_path / "photograph.png", tmp_path / "t.csv")
    (row,) = rows((tmp_path / "t.csv").read_text())
    assert int(row["class_index"]) == int(probabilities.argmax())
    assert float(row["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert row["class_name"] == "abcdefghij"[int(row["class_index"])]


def test_a_folder_without_images(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no pictures"):
        predict(made / "student.safetensors", tmp_path, None)
    with pytest.raises(DataError, match="does not exist"):
        predict(made / "student.safetensors", tmp_path / "missing", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["command=predict", "images=."], "artifact is not set"),
        (["command=predict", "artifact=x.onnx"], "images is not set"),
        (["artifact=x.onnx"], "artifact=x.onnx is for command=predict alone"),
        (["command=predict", "artifact=x.onnx", "images=."], "x.onnx does not exist"),
        (["command=predict", "artifact=x.tflite", "images=."], "ends in none of"),
    ],
)
def test_what_is_missing_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in call(*arguments, folder=tmp_path).refusal()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
