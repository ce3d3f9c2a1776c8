"""From the ``model`` group to a network: each provider, its files, and its refusals."""

from __future__ import annotations

import os
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
from hast_lightning.errors import ModelError
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.models.zoo import PretrainedNetwork, load
from tests.real_data import cifar10_folder

SMALL = "shufflenet_v2_x0_5"


def digits(**options: Any) -> PretrainedNetwork:
    return load(ModelConfig(provider="digits", name="digits_resnet", **options))


def cifar(**options: Any) -> PretrainedNetwork:
    return load(ModelConfig(**{"provider": "cifar_resnet", "name": "c", "depth": 8, **options}))


def vision(name: str = SMALL, **options: Any) -> PretrainedNetwork:
    return load(ModelConfig(provider="torchvision", name=name, **options))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's downloads, and no way to download."""

    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


def cached_file(cache: Path, name: str) -> Path:
    """Where torch would keep the published weights of ``name``."""
    cache.mkdir(parents=True, exist_ok=True)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    return cache / str(weights.url).rpartition("/")[2]


def message_of(load_network: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_network(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- digits -------------------------------------------------------------------------------


def test_the_bundled_network_is_ready_to_use() -> None:
    loaded = digits()
    assert (loaded.name, loaded.input_shape, loaded.num_classes) == ("digits_resnet", (1, 8, 8), 10)
    assert (loaded.mean, loaded.std) == ((0.5,), (0.5,))
    assert not any(module.training for module in loaded.network.modules())
    assert loaded.network(torch.zeros(2, *loaded.input_shape)).shape == (2, 10)
    assert loaded.checksum == checksum(loaded.network) == digits().checksum


def test_random_digits_networks_differ_from_the_bundled_one() -> None:
    random = digits(pretrained=False)
    assert random.checksum != digits().checksum
    assert random.network.state_dict().keys() == digits().network.state_dict().keys()


def test_a_digits_network_of_another_width_is_read_from_its_own_metadata(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    source = CifarResNet(14, 10, 1, width=4)
    save_file(source.state_dict(), path, {"depth": "14", "width": "4"})
    assert digits(checkpoint=str(path)).checksum == checksum(source)
    save_file(source.state_dict(), path, {"depth": "deep", "width": "4"})
    assert f"{path} says depth='deep', not a number" in message_of(digits, checkpoint=str(path))


def test_the_bundled_weights_are_for_10_classes() -> None:
    assert "is for 10 classes, the network for 4" in message_of(digits, num_classes=4)


# -- cifar_resnet -------------------------------------------------------------------------


def test_the_published_resnet20_is_loaded() -> None:
    path = cifar10_folder() / "resnet20-12fca82f.th"
    loaded = cifar(depth=20, checkpoint=str(path), mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.3])
    state = torch.load(path, "cpu", weights_only=True)["state_dict"]
    assert torch.equal(loaded.network.state_dict()["conv1.weight"], state["module.conv1.weight"])
    assert (loaded.input_shape, loaded.num_classes) == ((3, 32, 32), 10)
    assert (loaded.mean, loaded.std) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))


def test_another_depth_size_and_number_of_classes_are_possible() -> None:
    loaded = cifar(depth=14, pretrained=False, num_classes=7, input_size=24)
    assert (loaded.input_shape, loaded.num_classes) == ((3, 24, 24), 7)
    assert loaded.network(torch.zeros(1, 3, 24, 24)).shape == (1, 7)
    assert len(loaded.network.get_submodule("layer1")._modules) == 2


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "none.th")
    assert f"{path} does not exist" in message_of(cifar, checkpoint=path)


def test_means_and_deviations_must_fit_the_channels() -> None:
    message = message_of(cifar, pretrained=False, mean=[0.5], std=[0.5])
    assert "model.mean=[0.5] has 1 values; the input of c has 3 channels" in message
    message = message_of(digits, mean=[0.5], std=[0.1, 0.2])
    assert "model.std=[0.1, 0.2] has 2 values" in message


# -- torchvision --------------------------------------------------------------------------


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


class Payload:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


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
