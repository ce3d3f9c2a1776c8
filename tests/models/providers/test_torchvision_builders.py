"""Torchvision's classification networks: names, published and own weights, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import WeightsEnum

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.zoo import load
from tests.malicious import Payload
from tests.refusals import message_of

SMALL = "shufflenet_v2_x0_5"


def vision(name: str = SMALL, **options: Any) -> PretrainedNetwork:
    return load(ModelConfig(provider="torchvision", name=name, **options))


def cached_file(cache: Path, name: str) -> Path:
    """Where torch would keep the published weights of ``name``."""
    cache.mkdir(parents=True, exist_ok=True)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    return cache / str(weights.url).rpartition("/")[2]


def test_random_weights_need_no_file(cache: Path) -> None:
    loaded = vision(pretrained=False)
    assert (loaded.name, loaded.input_shape, loaded.num_classes) == (SMALL, (3, 224, 224), 1000)
    assert loaded.mean == pytest.approx((0.485, 0.456, 0.406))
    assert loaded.std == pytest.approx((0.229, 0.224, 0.225))
    assert not loaded.network.training
    assert not cache.exists()


def test_the_number_of_classes_and_the_size_may_be_set() -> None:
    loaded = vision(pretrained=False, num_classes=10, input_size=64)
    assert (loaded.input_shape, loaded.num_classes) == ((3, 64, 64), 10)
    assert loaded.network(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet-18", "ResNet18", "resnet81"])
def test_an_unknown_name_brings_similar_ones(name: str) -> None:
    message = message_of(vision, name=name)
    assert f"model.name={name!r} is no classification network of torchvision" in message
    assert "resnet18" in message.partition("torchvision")[2]


@pytest.mark.parametrize("name", ["qqqqqq", "quantized_resnet18", "fasterrcnn_resnet50_fpn"])
def test_names_that_are_no_classifiers_are_refused(name: str) -> None:
    assert "is no classification network" in message_of(vision, name=name)


def test_a_failed_download_names_the_file_and_the_folder(cache: Path) -> None:
    message = message_of(vision)
    assert cached_file(cache, SMALL).name in message
    assert f"not in {cache}" in message
    assert "no route to host" in message
    assert "model.checkpoint" in message


@pytest.mark.parametrize("error", [URLError("down"), TimeoutError("late"), RuntimeError("hash")])
def test_every_kind_of_failed_download_is_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **options: Any) -> None:
        assert options["check_hash"]
        assert options["weights_only"]
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    assert "could not be downloaded" in message_of(vision)


def test_published_weights_are_taken_from_the_cache(cache: Path) -> None:
    source = torchvision.models.get_model(SMALL, weights=None)
    torch.save(source.state_dict(), cached_file(cache, SMALL))
    loaded = vision()
    assert loaded.checksum == checksum(source)
    assert loaded.num_classes == 1000
    assert not loaded.network.training


def test_a_builder_is_told_of_its_weights(cache: Path) -> None:
    """Googlenet transforms its input only when it is built with the published weights."""
    source = torchvision.models.googlenet(weights=None, init_weights=False)
    torch.save(source.state_dict(), cached_file(cache, "googlenet"))
    network: Any = vision("googlenet").network
    assert network.transform_input
    assert network.aux1 is None


def test_a_malicious_file_in_the_cache_is_refused_and_not_executed(
    cache: Path, tmp_path: Path
) -> None:
    path, created = cached_file(cache, SMALL), tmp_path / "created"
    torch.save({"fc.weight": Payload(created)}, path)
    assert f"{path} is refused" in message_of(vision)
    assert not created.exists()
    torch.load(path, weights_only=False)  # what torchvision would have done
    assert created.is_dir()


def test_a_truncated_file_in_the_cache_is_named(cache: Path) -> None:
    path = cached_file(cache, SMALL)
    torch.save(torchvision.models.get_model(SMALL, weights=None).state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{path} is damaged" in message_of(vision)


def test_published_weights_have_a_fixed_number_of_classes(cache: Path) -> None:
    message = message_of(vision, num_classes=10)
    assert "model.num_classes=10" in message
    assert f"{SMALL} are for 1000 classes" in message


def test_a_checkpoint_replaces_the_published_weights(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    source = torchvision.models.get_model(SMALL, weights=None, num_classes=10)
    save_file(source.state_dict(), path)
    loaded = vision(checkpoint=str(path), num_classes=10)
    assert loaded.checksum == checksum(source)
    assert loaded.num_classes == 10
    message = message_of(vision, checkpoint=str(path))
    assert "is for 10 classes, the network for 1000: set model.num_classes=10" in message


def test_half_precision_checkpoints_give_float32_networks(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save(torchvision.models.get_model(SMALL, weights=None).half().state_dict(), path)
    network: nn.Module = vision(checkpoint=str(path)).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_names_of_classes_are_those_of_the_published_weights(cache: Path) -> None:
    names = vision(pretrained=False, input_size=32).class_names
    assert names is not None
    assert (len(names), names[0], names[-1]) == (1000, "tench", "toilet tissue")
    assert vision(pretrained=False, input_size=32, num_classes=10).class_names is None
