"""Networks of timm: names and tags, weights from the hub's cache, layers taken apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.zoo import load
from tests.malicious import Payload
from tests.refusals import message_of

# Small, with BatchNorms that have activations inside and a linear layer of timm's own.
SMALL = "mobilenetv3_small_050"
REPOSITORY = f"timm/{SMALL}.lamb_in1k"


def from_timm(name: str = SMALL, **options: Any) -> PretrainedNetwork:
    return load(ModelConfig(**{"provider": "timm", "name": name, "input_size": 32, **options}))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def cached_file(hub: Path, name: str, repository: str = REPOSITORY) -> Path:
    """Where the hub's client would keep a file of ``repository``."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot / name


def small_network() -> nn.Module:
    torch.manual_seed(7)
    return timm.create_model(SMALL)


def test_inputs_that_are_no_squares_come_from_timm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    published = timm.models.PretrainedCfg(input_size=(3, 64, 48), num_classes=1000)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: published)
    assert load(ModelConfig("timm", SMALL, pretrained=False)).input_shape == (3, 64, 48)


def test_input_and_classes_come_from_timm() -> None:
    loaded = load(ModelConfig("timm", "mobilenetv3_small_050", pretrained=False))
    assert (loaded.input_shape, loaded.num_classes) == ((3, 224, 224), 1000)
    assert loaded.mean == pytest.approx((0.485, 0.456, 0.406))
    assert loaded.resize_ratio == pytest.approx(1 / 0.875)
    assert loaded.class_names is not None
    # The same classes as torchvision's, in the same order.
    assert loaded.class_names[0] == ResNet18_Weights.DEFAULT.meta["categories"][0] == "tench"


def test_another_normalization_is_read_from_timm() -> None:
    loaded = from_timm("tf_mobilenetv3_small_minimal_100", pretrained=False)
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.5,) * 3)


def test_published_weights_are_taken_from_the_hubs_cache(hub: Path) -> None:
    source = small_network()
    save_file(source.state_dict(), cached_file(hub, "model.safetensors"))
    loaded = from_timm()
    assert loaded.checksum == checksum(source)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(images), source.eval()(images))
    # The weights are kept once.
    assert "state_dict" not in getattr(loaded.network, "pretrained_cfg", {})


def test_a_pickle_serves_where_there_is_no_safe_file(hub: Path) -> None:
    source = small_network()
    torch.save(source.state_dict(), cached_file(hub, "pytorch_model.bin"))
    assert from_timm().checksum == checksum(source)


def test_a_malicious_pickle_in_the_cache_is_not_executed(hub: Path, tmp_path: Path) -> None:
    created = tmp_path / "created"
    torch.save({"conv_stem.weight": Payload(created)}, cached_file(hub, "pytorch_model.bin"))
    assert "is refused" in message_of(from_timm)
    assert not created.exists()


def test_weights_of_another_network_in_the_cache_are_refused(hub: Path) -> None:
    save_file({"weight": torch.zeros(3)}, cached_file(hub, "model.safetensors"))
    assert f"the published weights of {SMALL} do not fit" in message_of(from_timm)


def test_a_failed_download_names_file_and_folder_and_ways_out(hub: Path) -> None:
    message = message_of(from_timm)
    assert f"the weights {REPOSITORY}/model.safetensors are not in {hub}" in message
    assert "model.checkpoint" in message
    assert "model.pretrained=false" in message


def test_a_tag_chooses_the_weights(hub: Path) -> None:
    message = message_of(from_timm, name="resnet18.tv_in1k")
    assert "timm/resnet18.tv_in1k" in message
    assert "did you mean" in message_of(from_timm, name="resnet18.tv_in2k")


@pytest.mark.parametrize("name", ["mobilenetv3_smal_050", "ResNet18"])
def test_an_unknown_name_brings_similar_ones(name: str) -> None:
    message = message_of(from_timm, name=name)
    assert f"model.name={name!r} is no classification network of timm; did you mean" in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("botnet50ts_256", "timm has no weights for botnet50ts_256: set model.checkpoint"),
        ("aimv2_large_patch14_224", "has no classifier: set model.num_classes"),
        ("resnetv2_50x1_bit", "are in a format of their own, which cannot be read safely"),
    ],
)
def test_networks_without_weights_that_could_serve_are_refused(
    hub: Path, name: str, reason: str
) -> None:
    assert reason in message_of(from_timm, name=name)


def test_weights_that_are_not_on_the_hub_are_taken_from_torchs_cache(cache: Path) -> None:
    source = timm.create_model("legacy_seresnet18", num_classes=1000)
    address = timm.models.get_pretrained_cfg("legacy_seresnet18").url
    message = message_of(from_timm, name="legacy_seresnet18")
    assert f"are not in {cache} and could not be downloaded" in message
    torch.save(source.state_dict(), cache / address.rpartition("/")[2])
    assert from_timm("legacy_seresnet18").checksum == checksum(source)


def test_published_weights_have_a_fixed_number_of_classes(hub: Path) -> None:
    assert "are for 1000 classes" in message_of(from_timm, num_classes=10)


def test_own_weights_and_another_number_of_classes(hub: Path, tmp_path: Path) -> None:
    source = timm.create_model(SMALL, num_classes=5)
    path = tmp_path / "own.safetensors"
    save_file(source.state_dict(), path)
    loaded = from_timm(checkpoint=str(path), num_classes=5)
    assert loaded.checksum == checksum(source)
    assert (loaded.num_classes, loaded.class_names) == (5, None)


def test_a_missing_package_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'hast-lightning[timm]'" in message_of(from_timm)
