"""From a network's name to predictions, by nothing but commands: inspect, quantize, predict."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from hast_lightning.export.artifact import FORMATS
from hast_lightning.records.result import Result
from tests.command_line import TINY, call
from tests.export.families import noise
from tests.real_data import cifar10_folder

PICTURES = 6
# A whole run of a network of millions of weights in a minute or two.
SHORT = (
    *TINY,
    "trainer.threads=1",
    "schedule.images=32",
    "schedule.image_batch=16",
    "schedule.image_steps=2",
    "schedule.student_batch=4",
)


@dataclass(frozen=True)
class Case:
    """What is said of a network on the command line, and what has to come of it."""

    network: tuple[str, ...]
    name: str
    bits: str
    classes: int
    """Of which the network's own names are known."""


DIGITS = Case(("quantizer=deploy",), "digits_resnet", "W8A8 (mse integer)", 10)
RANDOM = ("model.pretrained=false", "model.input_size=64", "data=none", "data.holdout=0.5")
LIBRARIES = (
    Case(
        ("model=torchvision", "model.name=mobilenet_v2", "quantizer=minmax", "quantizer.bits=4"),
        "mobilenet_v2",
        "W4A4 (minmax)",
        1000,
    ),
    Case(
        ("model=torchvision", "model.name=resnet18", "quantizer=deploy"),
        "resnet18",
        "W8A8 (mse integer)",
        1000,
    ),
    Case(
        ("model=timm", "model.name=efficientnet_b0", "quantizer=mse", "quantizer.bits=5"),
        "efficientnet_b0",
        "W5A5 (mse)",
        1000,
    ),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small pictures of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        pixels = (noise(3, 40 + 3 * number, 50, seed=number).sigmoid() * 255).to(torch.uint8)
        to_pil_image(pixels).save(folder / f"{number}.png")
    return folder


def said(*arguments: str, folder: Path) -> str:
    """What a command prints that ends well, and without a warning."""
    finished = call(*arguments, folder=folder)
    assert (finished.status, finished.err) == (0, "")
    return finished.out


def walk(case: Case, pictures: Path, folder: Path) -> None:
    """Every command in the order of the README; each works on what the one before left."""
    inspected = said("command=inspect", *case.network, folder=folder)
    assert case.name in inspected
    assert case.bits in inspected
    assert not list(folder.iterdir())

    printed = said(*case.network, *SHORT, "export=all", "hydra.run.dir=run", folder=folder)
    result = Result.read(folder / "run" / "result.json")
    assert result.model == case.name
    assert set(result.exports) == set(FORMATS)
    for record in result.exports.values():
        assert record["file"] in printed
        assert record["images"] == result.evaluated_images
        # One of few images is all that may differ (export.min_agreement).
        agreeing = record["agreement"] * record["images"] / 100
        assert record["images"] - round(agreeing) <= max(1, record["images"] // 1000)

    tables = {}
    for name, record in result.exports.items():
        table = said(
            "command=predict",
            f"artifact=run/{record['file']}",
            f"images={pictures}",
            folder=folder,
        )
        tables[name] = list(csv.DictReader(io.StringIO(table)))
        assert [row["file"] for row in tables[name]] == [f"{n}.png" for n in range(PICTURES)]
        assert all(0 <= int(row["class_index"]) < case.classes for row in tables[name])
        assert all(row["class_name"] for row in tables[name])
    assert classes(tables["program"]) == classes(tables["packed"])
    pairs = zip(classes(tables["onnx"]), classes(tables["packed"]), strict=True)
    assert sum(found != expected for found, expected in pairs) <= 1


def classes(table: list[dict[str, str]]) -> list[str]:
    return [row["class_index"] for row in table]


@pytest.mark.slow  # tests/docs follow the same commands
@pytest.mark.timeout(600)  # torch loads its compiler to write a program: slow on a busy machine
def test_the_bundled_network(pictures: Path, tmp_path: Path) -> None:
    walk(DIGITS, pictures, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several minutes on a busy machine
@pytest.mark.parametrize("case", LIBRARIES, ids=lambda case: case.name)
def test_networks_of_libraries(case: Case, pictures: Path, tmp_path: Path) -> None:
    network = (*case.network, *RANDOM)
    walk(Case(network, case.name, case.bits, case.classes), pictures, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_trained_weights_from_a_file(pictures: Path, tmp_path: Path) -> None:
    data = cifar10_folder()
    network = (
        "+experiment=cifar10_resnet20_w3a3_quick",
        f"model.checkpoint={data / 'resnet20-12fca82f.th'}",
        f"data.path={data / 'cifar10_test_first1017.npz'}",
    )
    walk(Case(network, "resnet20_cifar10", "W3A3 (minmax)", 10), pictures, tmp_path)
    result = Result.read(tmp_path / "run" / "result.json")
    assert result.teacher_top1 == pytest.approx(91.64, abs=0.1)
    assert result.exports["onnx"]["images"] == 1017
