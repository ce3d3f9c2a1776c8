"""Networks of pytorchcv: names, weights in its own cache, the archives they come in."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from pytorchcv.model_provider import get_model
from pytorchcv.models.common import model_store
from torch import nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.outputs import puts_out_maps
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.zoo import load
from tests.malicious import Payload
from tests.refusals import message_of

NAME = "resnet20_cifar10"


def from_pytorchcv(name: str = NAME, **options: Any) -> PretrainedNetwork:
    return load(ModelConfig(provider="pytorchcv", name=name, **options))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without downloads, and no way to download; the folder of pytorchcv's weights."""

    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    return tmp_path / ".torch" / "models"


def publish(monkeypatch: pytest.MonkeyPatch, content: bytes, name: str = NAME) -> str:
    """Have pytorchcv list ``content`` as the weights of a network; returns the file's name."""
    digest = hashlib.sha1(content).hexdigest()
    listed = {name: (1, "0123", digest, "v0.0.1")}
    monkeypatch.setattr(model_store, "get_model_metainfo_dict", lambda: listed)
    return f"{name}-0123-{digest[:8]}.pth"


def weights_of(network: nn.Module, path: Path, **more: Any) -> bytes:
    torch.save({**network.state_dict(), **more}, path)
    return path.read_bytes()


def small_network() -> nn.Module:
    torch.manual_seed(7)
    network: nn.Module = get_model(NAME)
    return network


def test_networks_of_the_papers_are_described() -> None:
    loaded = from_pytorchcv(pretrained=False)
    assert (loaded.input_shape, loaded.num_classes) == ((3, 32, 32), 10)
    # What pytorchcv's CIFAR networks were trained with is not ImageNet's.
    assert loaded.mean == (0.4914, 0.4822, 0.4465)
    assert loaded.std == (0.2023, 0.1994, 0.2010)
    assert loaded.class_names is None
    assert from_pytorchcv("resnet20_cifar100", pretrained=False).num_classes == 100


def test_networks_for_imagenet_have_its_names_and_normalization() -> None:
    loaded = from_pytorchcv("mobilenet_wd4", pretrained=False)
    assert (loaded.input_shape, loaded.num_classes) == ((3, 224, 224), 1000)
    assert loaded.mean == (0.485, 0.456, 0.406)
    assert loaded.class_names is not None
    assert loaded.class_names[0] == "tench"


def test_published_weights_are_taken_from_its_cache(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_network()
    # The library passes over names that the network has not, and some of its files have such.
    content = weights_of(source, tmp_path / "file", **{"ema.decay": torch.ones(1)})
    home.mkdir(parents=True)
    (home / publish(monkeypatch, content)).write_bytes(content)
    assert from_pytorchcv().checksum == checksum(source)


def test_weights_are_downloaded_and_unpacked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_network()
    content = weights_of(source, tmp_path / "file")
    file = publish(monkeypatch, content)
    addresses = []

    def download(address: str, path: str, **_: Any) -> None:
        addresses.append(address)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(file, content)
            archive.writestr("another", "not wanted")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    assert from_pytorchcv().checksum == checksum(source)
    url = "https://github.com/osmr/imgclsmob/releases/download/v0.0.1"
    assert addresses == [f"{url}/{file}.zip"]
    assert [path.name for path in home.iterdir()] == [file]


def test_a_failed_download_names_file_and_folder_and_ways_out(home: Path) -> None:
    message = message_of(from_pytorchcv)
    assert f"the weights {NAME}-0597-9b0024ac.pth are not in {home}" in message
    assert "no route to host" in message
    assert "model.pretrained=false" in message
    assert list(home.iterdir()) == []


def test_a_file_with_another_checksum_is_refused(home: Path) -> None:
    home.mkdir(parents=True)
    path = home / f"{NAME}-0597-9b0024ac.pth"
    weights_of(small_network(), path)
    assert f"{path} is not the published one (its SHA-1 differs)" in message_of(from_pytorchcv)


def test_a_malicious_file_with_the_right_checksum_is_not_executed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = tmp_path / "created"
    torch.save({"output.weight": Payload(created)}, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    home.mkdir(parents=True)
    (home / publish(monkeypatch, content)).write_bytes(content)
    assert "is refused" in message_of(from_pytorchcv)
    assert not created.exists()


def test_a_network_without_weights_is_refused(home: Path) -> None:
    message = message_of(from_pytorchcv, name="seresnet34")
    assert message.startswith("pytorchcv has no weights for seresnet34: set model.checkpoint")


@pytest.mark.parametrize("name", ["resnet20_cifar11", "ResNet18"])
def test_an_unknown_name_brings_similar_ones(name: str) -> None:
    message = message_of(from_pytorchcv, name=name)
    assert f"model.name={name!r} is no classification network of pytorchcv" in message
    assert "did you mean resnet" in message


def test_another_number_of_classes_needs_other_weights(tmp_path: Path, home: Path) -> None:
    assert "are for 10 classes" in message_of(from_pytorchcv, num_classes=4)
    network = get_model(NAME, num_classes=100)
    weights_of(network, tmp_path / "own.pth")
    loaded = from_pytorchcv(checkpoint=str(tmp_path / "own.pth"), num_classes=100)
    assert loaded.checksum == checksum(network)
    assert loaded.num_classes == 100
    # Its builders for CIFAR take no other numbers.
    message = message_of(from_pytorchcv, num_classes=4, pretrained=False)
    assert f"pytorchcv cannot build {NAME} with num_classes=4" in message


def test_a_network_that_finds_poses_puts_out_maps_and_classifies_no_images() -> None:
    loaded = from_pytorchcv("lwopenpose2d_mobilenet_cmupan_coco", pretrained=False)
    assert puts_out_maps(loaded.network)


def test_a_missing_package_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchcv", None)
    assert "pip install 'hast-lightning[paper]'" in message_of(from_pytorchcv)
