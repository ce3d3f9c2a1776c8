"""Images that are handed over: every form of them comes out the same, or is refused in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from hast_lightning.config import DataConfig, ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.data.given import BATCH_SIZE, GivenData
from hast_lightning.data.image_folder import load_image_folder
from hast_lightning.errors import DataError
from hast_lightning.files.pixels import ORIENTATION
from hast_lightning.models import zoo
from hast_lightning.runs.prediction import picture_batches
from hast_lightning.sources.own_images import read_own_images
from tests.export.families import noise
from tests.export.test_packed import DESCRIPTION

COUNT = BATCH_SIZE + 44


@pytest.fixture(scope="module")
def network() -> PretrainedNetwork:
    return zoo.load(ModelConfig(provider="digits", name="digits_resnet"))


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return pixels, torch.arange(COUNT) % 10


class Endless(Dataset[Any]):
    """A map-style dataset that answers behind its end, too."""

    def __init__(self, pair: tuple[Any, Any]) -> None:
        self.pair = pair

    def __len__(self) -> int:
        return len(self.pair[0])

    def __getitem__(self, index: int) -> Any:
        return self.pair[0][index % len(self)], self.pair[1][index % len(self)]


class Stream(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def batches(images: Any, labels: Any, size: int = 64) -> list[tuple[Any, Any]]:
    return [(images[i : i + size], labels[i : i + size]) for i in range(0, len(images), size)]


def pictures(images: Tensor, labels: Tensor) -> list[tuple[Image.Image, int]]:
    return [
        (Image.fromarray(image[0].numpy()), int(label))
        for image, label in zip(images, labels, strict=True)
    ]


def whole(data: GivenData) -> tuple[Tensor, Tensor]:
    parts = list(data)
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


FORMS = {
    "tensors": lambda x, y: (x, y),
    "list of two": lambda x, y: [x, y],
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "labels of 16 bits": lambda x, y: (x, y.numpy().astype(np.uint16)),
    "labels of 64 bits": lambda x, y: (x, y.numpy().astype(np.uint64)),
    "labels in a list": lambda x, y: (x, y.tolist()),
    "batches": batches,
    "dataset": TensorDataset,
    "dataset of bytes and numbers": lambda x, y: Endless((x.numpy(), y.tolist())),
    "dataset of pictures": lambda x, y: Endless(tuple(zip(*pictures(x, y), strict=True))),
    "stream of images": lambda x, y: Stream(list(zip(x, y, strict=True))),
    "stream of batches": lambda x, y: Stream(batches(x, y)),
    "list of images": lambda x, y: list(zip(x, y, strict=True)),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), 64),
    "function": lambda x, y: functools.partial(batches, x, y),
    "generator function": lambda x, y: lambda: (batch for batch in batches(x, y)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_again_and_again(
    form: Any, pair: tuple[Tensor, Tensor], network: PretrainedNetwork
) -> None:
    data = GivenData(form(*pair), network)
    for _ in range(2):
        images, labels = whole(data)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert torch.equal(images, (pair[0].float() / 255 - 0.5) / 0.5)
        assert torch.equal(labels, pair[1])


def test_single_images_come_in_batches(
    pair: tuple[Tensor, Tensor], network: PretrainedNetwork
) -> None:
    assert [len(labels) for _, labels in GivenData(TensorDataset(*pair), network)] == [
        BATCH_SIZE,
        COUNT - BATCH_SIZE,
    ]


def test_pictures_are_prepared_as_those_of_a_folder(network: PretrainedNetwork) -> None:
    """The shorter side is resized, and the crop leaves the dark ends away."""
    grey = np.zeros((40, 20), np.uint8)
    grey[8:32] = 255
    wide = replace(network, resize_ratio=1.0)
    images, _ = whole(GivenData([(Image.fromarray(grey).convert("RGB"), 3)], wide))
    assert images.shape == (1, 1, 8, 8)
    assert torch.equal(images, torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize("shuffle", [False, True])
def test_measuring_leaves_the_random_stream_alone(
    pair: tuple[Tensor, Tensor], network: PretrainedNetwork, shuffle: bool
) -> None:
    state = torch.get_rng_state()
    data = GivenData(DataLoader(TensorDataset(*pair), 64, shuffle=shuffle), network)
    _, labels = whole(data)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(labels.sort().values, pair[1].sort().values)


class Drawn(Dataset[tuple[Tensor, int]]):
    """Images that are drawn when they are asked for, as random crops are."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 8, 8), 0


def test_items_that_draw_are_not_all_the_same(network: PretrainedNetwork) -> None:
    images, _ = whole(GivenData(Drawn(), network))
    assert len({float(image.sum()) for image in images}) == 3


def camera_on_its_side(picture: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def of_16_bits(picture: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)


def with_transparency(picture: Image.Image, path: Path) -> None:
    """What cannot be seen is as black as can be."""
    layer = picture.convert("RGBA")
    layer.paste((0, 0, 0, 0), (0, 0, 4, 4))
    layer.save(path)
    picture.paste("white", (0, 0, 4, 4))


@pytest.mark.parametrize(
    "store",
    [lambda picture, path: picture.save(path), camera_on_its_side, of_16_bits, with_transparency],
    ids=["as it is", "on its side", "16 bits", "transparent"],
)
def test_a_picture_of_the_networks_size_is_the_same_to_the_pixel_everywhere(
    network: PretrainedNetwork, tmp_path: Path, store: Callable[[Image.Image, Path], None]
) -> None:
    """Also for one that is not square."""
    wide = replace(network, input_shape=(3, 8, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    picture = to_pil_image((noise(3, 8, 16).sigmoid() * 255).to(torch.uint8))
    if store is of_16_bits:
        picture = picture.convert("L").convert("RGB")
    for label in range(network.num_classes):
        (tmp_path / str(label)).mkdir()
        store(picture, tmp_path / str(label) / "a.png")
    pixels = pil_to_tensor(picture)
    read = Image.open(tmp_path / "0" / "a.png")
    given, _ = whole(GivenData([(read, 0)], wide))
    folder = load_image_folder(DataConfig(source="imagenet", path=str(tmp_path)), wide)
    from_folder = next(iter(folder))[0][:1]
    own = read_own_images(tmp_path, 1, wide, "sources.bank.path")
    description = replace(DESCRIPTION, input_shape=(3, 8, 16), mean=wide.mean, std=wide.std)
    predicted = next(picture_batches([read, tmp_path / "0" / "a.png"], description))
    assert torch.equal(own[0], pixels)
    expected = (pixels.float() / 255 - 0.5) / 0.5
    for images in (given, from_folder, predicted, predicted[1:]):
        torch.testing.assert_close(images[0], expected)


def generator() -> Iterator[Any]:
    yield from ()


def with_label(label: int, at: int) -> tuple[Tensor, Tensor]:
    labels = torch.zeros(COUNT, dtype=torch.int64)
    labels[at] = label
    return torch.zeros(COUNT, 1, 8, 8), labels


IMAGES, LABELS = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
ONCE = iter([(IMAGES, LABELS)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "data is a int; expected a pair"),
        (generator(), "only once, and is needed twice"),
        (lambda: ONCE, "only once, and is needed twice"),
        (lambda x: x, "cannot be called without arguments: missing a required argument: 'x'"),
        (lambda: 3, "a function that gives a int"),
        (DataLoader, "data is a type"),
        (torch.nn.Identity(), "data is a Identity"),
        ([], "data holds no images"),
        (generator, "data holds no images"),
        ((IMAGES[:0], LABELS[:0]), "data holds no images"),
        (Endless((IMAGES[:0], LABELS[:0])), "data holds no images"),
        ((IMAGES, LABELS[:1]), "2 images and 1 labels"),
        ((IMAGES[:, 0], LABELS), r"images of shape \(2, 8, 8\); expected \(N, C, H, W\)"),
        ((IMAGES[..., :7], LABELS), r"images of shape \(2, 1, 8, 7\); the network takes"),
        (Endless((IMAGES[..., :7], LABELS)), r"images of shape \(2, 1, 8, 7\); the network takes"),
        ([(IMAGES[0], 1), (IMAGES[0, :, :7], 1)], r"\(1, 7, 8\) and \(1, 8, 8\), are no batch"),
        ((IMAGES.int(), LABELS), "images of type torch.int32; allowed: uint8"),
        ((IMAGES.numpy().astype("U1"), LABELS), "a ndarray is no tensor"),
        ((IMAGES / 0, LABELS), "images have NaN or infinite values"),
        ((IMAGES, LABELS.float()), "labels of type torch.float32"),
        ((IMAGES, LABELS.bool()), "labels of type torch.bool"),
        ((IMAGES, torch.zeros(2, 10).long()), r"shape \(2, 10\); expected integers of shape"),
        ((IMAGES, ["zero", "one"]), "a list is no tensor"),
        (Endless((IMAGES, LABELS - 1)), "labels from -1 to -1; the network knows 0 to 9"),
        # Not in the first batch, and found before any work all the same.
        (with_label(10, -1), "labels from 0 to 10"),
        ([(IMAGES, LABELS), (IMAGES, LABELS + 10)], "labels from 10 to 10"),
        ([{"image": IMAGES, "label": LABELS}], "data gives a dict; expected pairs"),
        (IMAGES, "data gives a Tensor; expected pairs"),
    ],
)
def test_what_does_not_fit_is_one_line(
    given: Any, message: str, network: PretrainedNetwork
) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        GivenData(given, network)
    assert "\n" not in str(refusal.value)


def test_a_stream_that_has_run_dry_is_refused(network: PretrainedNetwork) -> None:
    items: list[Any] = [(IMAGES, LABELS)]
    data = GivenData(Stream(items), network)
    items.clear()
    with pytest.raises(DataError, match="holds no images; at least one is needed, at every pass"):
        list(data)
