"""The user's own network: found, called, and refused in one line where it cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hast_lightning.config import DataConfig, ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.data.evaluation import load_evaluation_data
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.models.zoo import load
from tests.real_data import imagenet_folder
from tests.refusals import message_of

SOURCE = """\
import math

from hast_lightning.models.resnet import CifarResNet

calls = []
number = 7


def build(num_classes=6):
    calls.append(num_classes)
    return CifarResNet(8, num_classes, width=4)


def gray():
    return CifarResNet(8, 5, in_channels=1, width=4)


def wants(depth):
    return CifarResNet(depth, 5)


def fails():
    raise ValueError("the disk is on fire\\nand so is the second line")


def number_of_classes():
    return 10


class Features(CifarResNet):
    def forward(self, images):
        return self.layer3(self.layer2(self.layer1(self.conv1(images)))).flatten(2)


def features():
    return Features(8, 5, width=4)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    name = f"my_networks_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def own(factory: str, **options: Any) -> PretrainedNetwork:
    settings = {"input_size": 16, **options}
    return load(ModelConfig("own", name="mine", factory=factory, **settings))


def test_a_module_in_the_working_directory_is_found(module: str) -> None:
    loaded = own(f"{module}:build")
    assert (loaded.name, loaded.input_shape, loaded.num_classes) == ("mine", (3, 16, 16), 6)
    assert loaded.mean == (0.485, 0.456, 0.406)  # ImageNet's unless something else is said
    assert loaded.class_names is None
    assert not loaded.network.training


def test_the_number_of_classes_is_handed_on_where_it_is_taken(module: str) -> None:
    assert own(f"{module}:build", num_classes=9).num_classes == 9
    assert sys.modules[module].calls == [9]
    message = message_of(own, factory=f"{module}:gray", num_classes=9, mean=[0.5], std=[0.5])
    assert "model.num_classes=9: the network mine puts out 5 classes" in message


def test_a_checkpoint_brings_the_weights(module: str, tmp_path: Path) -> None:
    source = CifarResNet(8, 6, width=4)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    loaded = own(f"{module}:build", checkpoint=str(tmp_path / "weights.safetensors"))
    assert loaded.checksum == checksum(source)
    assert own(f"{module}:build").checksum != checksum(source)


def test_images_that_are_not_in_colour_need_their_normalization(module: str) -> None:
    message = message_of(own, factory=f"{module}:gray")
    assert "model.mean and model.std are not set" in message
    assert "1-channel images" in message
    assert own(f"{module}:gray", mean=[0.3], std=[0.4]).input_shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("nothing", "has no function 'nothing'"),
        ("number", "has no function 'number'"),
        ("wants", "is called without arguments: missing a required argument: 'depth'"),
        ("fails", "(raise ValueError("),
        ("fails", "ValueError: the disk is on fire"),
        ("number_of_classes", "returned something of type int, not a torch.nn.Module"),
        ("features", "returns a tensor of shape (2, 16, 16) for 2 images of 3x16x16"),
    ],
)
def test_a_function_that_gives_no_classifier_is_refused(
    module: str, function: str, expected: str
) -> None:
    assert expected in message_of(own, factory=f"{module}:{function}")


def test_a_module_that_is_not_there_is_named_with_the_folder(module: str, tmp_path: Path) -> None:
    message = message_of(own, factory="no_such_package.networks:build")
    assert f"there is no module 'no_such_package' in {tmp_path}" in message
    (tmp_path / f"{module}.py").write_text("import no_such_dependency\n")
    assert "there is no module 'no_such_dependency'" in message_of(own, factory=f"{module}:build")


def test_a_module_that_cannot_be_imported_is_refused_with_the_place(
    module: str, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text("x = 1\nx.y\n")
    message = message_of(own, factory=f"{module}:build")
    assert f"failed at {module}.py:2 (x.y): AttributeError: 'int' object has no" in message


def test_a_published_mobilenet_v1_as_a_users_own_network() -> None:
    path = imagenet_folder() / "mobilenetv1_x0.25.pth.tar"
    factory = "experiments.mobilenetv1:build"
    loaded = own(factory, checkpoint=str(path), input_size=224)
    assert (loaded.num_classes, loaded.input_shape) == (1000, (3, 224, 224))
    state = torch.load(path, "cpu", weights_only=True)["state_dict"]
    assert torch.equal(loaded.network.state_dict()["fc.weight"], state["module.fc.weight"])
    assert sum(p.numel() for p in loaded.network.parameters()) == pytest.approx(0.47e6, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
@torch.no_grad()
def test_the_published_mobilenet_v1_is_right_on_510_of_1000_photographs() -> None:
    folder = imagenet_folder()
    checkpoint = str(folder / "mobilenetv1_x0.25.pth.tar")
    loaded = own("experiments.mobilenetv1:build", checkpoint=checkpoint, input_size=224)
    config = DataConfig(source="imagenet", path=str(folder / "val"), batch_size=50)
    data = load_evaluation_data(config, loaded)
    assert data is not None
    right = torch.cat([loaded.network(images).argmax(dim=1) == labels for images, labels in data])
    assert (len(right), int(right.sum())) == (1000, 510)
