from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from PIL import Image

from hast_lightning.config import DataConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.data.evaluation import load_evaluation_data
from hast_lightning.data.image_folder import ImageFolderData
from hast_lightning.errors import DataError

COLOURS = {"n01": (255, 0, 0), "n02": (0, 255, 0)}


def network(num_classes: int = 2) -> PretrainedNetwork:
    return PretrainedNetwork(
        torch.nn.Identity(), "any", (3, 32, 32), num_classes, (0.5,) * 3, (0.25,) * 3, ""
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (64, 48), colour).save(tmp_path / name / f"{number}.png")
    return tmp_path


def load(folder: Path, num_classes: int = 2) -> ImageFolderData:
    config = DataConfig(source="imagenet", path=str(folder), batch_size=3)
    data = load_evaluation_data(config, network(num_classes))
    assert isinstance(data, ImageFolderData)
    return data


def test_images_are_normalized_and_labeled_in_sorted_class_order(folder: Path) -> None:
    data = load(folder)
    batches = list(data)
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    assert [len(images) for images, _ in batches] == [3, 1]
    assert labels.tolist() == [0, 0, 1, 1]
    assert images.shape == (4, 3, 32, 32)
    # Pure colours: (1 - 0.5) / 0.25 and (0 - 0.5) / 0.25.
    torch.testing.assert_close(images[0, :, 0, 0], torch.tensor([2.0, -2.0, -2.0]))
    torch.testing.assert_close(images[3, :, 0, 0], torch.tensor([-2.0, 2.0, -2.0]))


def test_iterating_leaves_the_random_streams_of_the_run_alone(folder: Path) -> None:
    data = load(folder)
    before = torch.random.get_rng_state()
    list(data)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_missing_folder_says_which_layout_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one folder per class"):
        load(tmp_path / "absent")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one folder per class"):
        load(tmp_path)


def test_another_number_of_classes_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="2 class folders, the network 1000 classes"):
        load(folder, 1000)


def test_photographs_that_are_in_no_class_folders_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "ILSVRC2012_val_00000001.png")
    with pytest.raises(DataError, match="expected one folder per class in sorted class order"):
        load(tmp_path)


def test_the_folder_above_is_refused_with_the_layout(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for name in COLOURS:
        (folder / name).rename(tmp_path / "val" / name)
    with pytest.raises(DataError, match="1 class folders, the network 2 classes; expected one fo"):
        load(tmp_path)


def test_an_image_that_was_cut_short_is_named(folder: Path) -> None:
    file = folder / "n02" / "0.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(
        DataError, match=r"has a bad image: .*n02/0\.png is not a readable"
    ) as caught:
        list(load(folder))
    assert "\n" not in str(caught.value)


def test_an_image_of_too_many_pixels_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"has a bad image: .*\.png is not a readable"):
        list(load(folder))


def test_a_damaged_image_is_named(folder: Path) -> None:
    (folder / "n02" / "0.png").write_bytes(b"no image")
    before = multiprocessing.active_children()
    with pytest.raises(DataError, match=r"n02/0\.png"):
        list(load(folder))
    # Nor does a process that reads images stay behind.
    assert multiprocessing.active_children() == before
