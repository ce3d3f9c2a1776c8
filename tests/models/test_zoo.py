"""From the ``model`` group to a provider."""

from __future__ import annotations

import pytest

from hast_lightning.config import PROVIDERS, ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.models import zoo
from hast_lightning.models.zoo import load


def test_every_provider_of_the_configuration_has_a_loader() -> None:
    assert set(zoo._LOADERS) == set(PROVIDERS)


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        ("digits", {}),
        ("cifar_resnet", {"depth": 8}),
        ("torchvision", {"name": "mnasnet0_5", "input_size": 32}),
        ("timm", {"name": "lcnet_035", "input_size": 32}),
        ("pytorchcv", {"name": "resnet20_cifar10"}),
        ("efficientnet_lite0", {"input_size": 32}),
        ("own", {"factory": "torchvision.models:mnasnet0_5", "input_size": 32}),
    ],
)
def test_each_provider_gives_a_network_that_is_as_it_is_described(
    provider: str, options: dict[str, object]
) -> None:
    settings = {"name": "a_name", "pretrained": False, **options}
    loaded = load(ModelConfig(provider=provider, **settings))  # type: ignore[arg-type]
    assert isinstance(loaded, PretrainedNetwork)
    assert loaded.name == settings["name"]
    assert len(loaded.mean) == len(loaded.std) == loaded.input_shape[0]
    assert loaded.class_names is None or len(loaded.class_names) == loaded.num_classes
    assert not any(module.training for module in loaded.network.modules())


def test_a_network_of_no_provider_cannot_be_asked_for() -> None:
    with pytest.raises(ModelError, match="did you mean resnet18"):
        load(ModelConfig(provider="torchvision", name="resnet-18"))
