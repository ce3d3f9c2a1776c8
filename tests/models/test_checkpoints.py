"""Weights from files: what is read, what is refused, and that nothing is ever executed."""

from __future__ import annotations

import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hast_lightning.errors import ModelError
from hast_lightning.models.checkpoints import (
    checksum,
    load_weights,
    read_metadata,
    read_state_dict,
)
from hast_lightning.models.resnet import CifarResNet
from tests.real_data import cifar10_folder

Saver = Callable[[Any, Path], None]


def save_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def network(classes: int = 5, depth: int = 8, channels: int = 3, seed: int = 0) -> CifarResNet:
    torch.manual_seed(seed)
    return CifarResNet(depth, classes, channels, width=4)


def refusal(load: Callable[..., Any], *arguments: Any) -> str:
    """The message of the refusal, which is one line and names the file."""
    with pytest.raises(ModelError) as caught:
        load(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert str(arguments[-1]) in message
    assert len(message) < 400 + 2 * len(str(arguments[-1]))
    return message


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# -- What is read -------------------------------------------------------------------------


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"model": {"state_dict": state}, "best": 91.7},
        lambda state: OrderedDict((f"module.{name}", value) for name, value in state.items()),
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    ],
    ids=["plain", "state_dict", "model", "nested", "parallel", "parallel state_dict"],
)
def test_state_dicts_are_unwrapped(save: Saver, wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    state = network().state_dict()
    save(wrap(state), tmp_path / "weights.pth")
    assert_same(read_state_dict(tmp_path / "weights.pth"), state)


def test_safetensors_and_their_metadata_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = network().state_dict()
    save_file(state, path, {"depth": "8"})
    assert_same(read_state_dict(str(path)), state)
    assert read_metadata(path) == {"depth": "8"}
    save_file(state, path)
    assert read_metadata(path) == {}


def test_other_files_have_no_metadata(tmp_path: Path) -> None:
    save_zip(network().state_dict(), tmp_path / "weights.pth")
    assert read_metadata(tmp_path / "weights.pth") == {}


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    save_zip({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "weights.pth")
    assert set(read_state_dict(tmp_path / "weights.pth")) == {"module.a", "b"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_loaded_into_the_network(suffix: str, tmp_path: Path) -> None:
    path, source, target = tmp_path / f"w{suffix}", network(seed=0), network(seed=1)
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    assert checksum(source) != checksum(target)
    load_weights(target, path)
    assert checksum(source) == checksum(target)


def test_half_precision_weights_become_those_of_the_network(tmp_path: Path) -> None:
    source, target = network(seed=0).half(), network(seed=1)
    save_zip(source.state_dict(), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert target.conv1.weight.dtype == torch.float32
    assert torch.equal(target.conv1.weight, source.conv1.weight.float())


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    source, target = network(seed=0), network(seed=1)
    state = {n: v for n, v in source.state_dict().items() if "num_batches" not in n}
    save_zip(state, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert torch.equal(target.linear.weight, source.linear.weight)


@pytest.mark.slow
@torch.no_grad()
def test_the_published_resnet20_is_right_on_932_of_1017_images() -> None:
    folder = cifar10_folder()
    teacher = CifarResNet(20, 10)
    load_weights(teacher, folder / "resnet20-12fca82f.th")
    data = np.load(folder / "cifar10_test_first1017.npz")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((torch.from_numpy(data["x"]) / 255 - mean) / std).permute(0, 3, 1, 2)
    teacher.eval().to(memory_format=torch.channels_last)
    found = teacher(images.contiguous(memory_format=torch.channels_last)).argmax(1)
    assert int((found == torch.from_numpy(data["y"])).sum()) == 932


# -- What is refused as a file ------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(read_state_dict, tmp_path / "none.pth")
    assert "does not exist" in refusal(read_metadata, tmp_path / "none.safetensors")
    assert "is a folder" in refusal(load_weights, network(), tmp_path)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
def test_a_malicious_pickle_is_refused_and_not_executed(
    save: Saver, nested: bool, tmp_path: Path
) -> None:
    created, path = tmp_path / "created", tmp_path / "weights.pth"
    payload = Payload(created)
    save({"state_dict": {"conv1.weight": payload}} if nested else payload, path)
    message = refusal(load_weights, network(), path)
    assert not created.exists()
    if save is not save_pickle:  # its newer protocol is refused before the payload is reached
        assert "is refused: it asks for" in message
        assert "mkdir" in message
    # The payload does work where pickles are trusted, so the assertion above can fail.
    pickle.loads(pickle.dumps(payload))
    assert created.is_dir()


def test_a_disguised_pickle_is_not_executed_either(tmp_path: Path) -> None:
    created, path = tmp_path / "created", tmp_path / "weights.safetensors"
    save_zip({"conv1.weight": Payload(created)}, path)
    assert "damaged or of another format" in refusal(load_weights, network(), path)
    assert not created.exists()


def test_a_pickled_network_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "network.pth")
    message = refusal(read_state_dict, tmp_path / "network.pth")
    assert "hast_lightning.models.resnet.CifarResNet" in message
    assert "save the state dict alone" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    save = {"zip": save_zip, "legacy": save_legacy, "safetensors": save_file}[kind]
    save(network().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    message = refusal(load_weights, network(), path)
    assert "damaged or of another format" in message or "is refused" in message
    if kind == "safetensors":
        assert "damaged" in refusal(read_metadata, path)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>not found</html>", b"version https://git-lfs.github.com"]
)
def test_a_page_or_a_pointer_instead_of_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert "damaged or of another format" in refusal(read_state_dict, tmp_path / name)


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    draw, path, refused = random.Random(0), tmp_path / "w.pth", 0
    save_legacy({"weight": torch.zeros(4)}, path)
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except ModelError:
            refused += 1
    assert refused > 60


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
        ([torch.zeros(3)], "holds no state dict"),
        ({"conv1.weight": torch.zeros(1), "epoch": 3}, "'epoch' is a int"),
        ({"conv1.weight": torch.eye(3).to_sparse()}, "'conv1.weight' is a Tensor"),
    ],
    ids=["empty", "tensor", "list", "number", "sparse"],
)
def test_content_other_than_plain_tensors_is_refused(
    content: Any, expected: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert expected in refusal(read_state_dict, tmp_path / "w.pth")


# -- What is refused as weights -----------------------------------------------------------


def refused_weights(source: nn.Module | dict[str, Tensor], target: nn.Module, path: Path) -> str:
    """The refusal of weights, which must leave the network as it was."""
    before = checksum(target)
    torch.save(source.state_dict() if isinstance(source, nn.Module) else source, path)
    message = refusal(load_weights, target, path)
    assert checksum(target) == before
    return message


def test_another_depth_is_another_architecture(tmp_path: Path) -> None:
    message = refused_weights(network(depth=14), network(), tmp_path / "w.pth")
    assert "another architecture: it has layer1.1.bn1.bias" in message
    assert "and 27 more, which the network has not" in message
    message = refused_weights(network(), network(depth=14), tmp_path / "w.pth")
    assert "another architecture: it lacks layer1.1.bn1.bias" in message


def test_other_names_are_listed_on_both_sides(tmp_path: Path) -> None:
    state = network().state_dict()
    state["fc.weight"] = state.pop("linear.weight")
    message = refused_weights(state, network(), tmp_path / "w.pth")
    assert "it lacks linear.weight and it has fc.weight, which" in message


def test_another_number_of_classes_is_said_as_such(tmp_path: Path) -> None:
    message = refused_weights(network(classes=100), network(), tmp_path / "w.pth")
    assert "is for 100 classes, the network for 5: set model.num_classes=100" in message


def test_other_channels_of_the_input_are_not_called_classes(tmp_path: Path) -> None:
    message = refused_weights(network(channels=1), network(), tmp_path / "w.pth")
    assert "conv1.weight has the shape (4, 1, 3, 3), the network expects (4, 3, 3, 3)" in message
    assert "classes" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["layer2.0.conv1.weight", "bn1.running_var"])
def test_weights_that_are_not_finite_are_refused(name: str, value: float, tmp_path: Path) -> None:
    state = network().state_dict()
    state[name].view(-1)[1] = value
    message = refused_weights(state, network(seed=1), tmp_path / "w.pth")
    assert f"NaN or infinite values in {name}" in message


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    state["conv1.weight"] = state["conv1.weight"].to(torch.int8)
    message = refused_weights(state, network(seed=1), tmp_path / "w.pth")
    assert "conv1.weight as torch.int8" in message


# -- The checksum -------------------------------------------------------------------------


def test_the_checksum_depends_on_values_alone() -> None:
    first = network()
    last = network().to(memory_format=torch.channels_last)
    assert len(checksum(first)) == 64
    assert checksum(first) == checksum(network()) == checksum(last)


@torch.no_grad()
def test_the_checksum_sees_every_kind_of_change() -> None:
    sums = {checksum(network()), checksum(network(classes=6)), checksum(network().double())}
    changed = network()
    changed.bn1.running_mean[0] = torch.finfo(torch.float32).tiny
    sums.add(checksum(changed))
    counted = network()
    counted.bn1.num_batches_tracked += 1
    sums.add(checksum(counted))
    renamed = nn.ModuleDict({"other": network()})
    sums.add(checksum(renamed))
    assert len(sums) == 6
