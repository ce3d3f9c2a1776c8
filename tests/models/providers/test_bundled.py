"""The networks of this package: their files, and their refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.models.zoo import load
from tests.real_data import cifar10_folder
from tests.refusals import message_of


def digits(**options: Any) -> PretrainedNetwork:
    return load(ModelConfig(provider="digits", name="digits_resnet", **options))


def cifar(**options: Any) -> PretrainedNetwork:
    return load(ModelConfig(**{"provider": "cifar_resnet", "name": "c", "depth": 8, **options}))


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


def test_digits_are_named_and_other_names_may_be_set() -> None:
    assert digits().class_names == tuple("0123456789")
    named = cifar(pretrained=False, num_classes=2, class_names=["cat", "dog"])
    assert named.class_names == ("cat", "dog")
    assert cifar(pretrained=False).class_names is None
    # Digits' own names do not fit a network for letters.
    assert digits(pretrained=False, num_classes=26).class_names is None


def test_names_must_fit_the_classes() -> None:
    message = message_of(cifar, pretrained=False, class_names=["cat", "dog"])
    assert "model.class_names has 2 names; the network c puts out 10 classes" in message
