"""Weights from files: what is read, what is refused, and that nothing is ever executed."""

from __future__ import annotations

import argparse
import enum
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
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
from hast_lightning.models.unpickling import read_tensors_beside_objects
from hast_lightning.models.weight_choice import find_weights
from tests.malicious import Payload

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


# -- What is refused as a file ------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(read_state_dict, tmp_path / "none.pth")
    assert "does not exist" in refusal(read_metadata, tmp_path / "none.safetensors")
    assert "is a folder" in refusal(load_weights, network(), tmp_path)


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


# -- Checkpoints as people save them ------------------------------------------------------


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def compiled_inside(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As of a network of which one part went through torch.compile."""
    return {name.replace("layer1.", "layer1._orig_mod.", 1): value for name, value in state.items()}


def averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torch.optim.swa_utils.AveragedModel saves it."""
    return {"n_averaged": torch.tensor(7), **prefixed(state, "module.")}


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "Lightning": lambda s: {"state_dict": {**prefixed(s, "model."), "loss.weight": torch.ones(3)}},
    "Lightning, net": lambda s: {"epoch": 3, "state_dict": prefixed(s, "net.")},
    "any prefix": lambda s: prefixed(s, "a.b.c."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled and parallel": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "compiled inside": compiled_inside,
    "averaged": averaged,
    "averaged, wrapped": lambda s: {"swa_model": averaged(s), "epoch": 1},
    "net": lambda s: {"net": s, "acc": 91.2},
    "network": lambda s: {"network": s},
    "weights": lambda s: {"weights": s, "classes": ["a", "b"]},
    "params": lambda s: {"params": s},
    "only the average": lambda s: {"params_ema": s},
    "ema_state_dict": lambda s: {"ema_state_dict": prefixed(s, "module.")},
    "deeper": lambda s: {"callbacks": {"EMA": {"weights": s}}, "state": {"step": 3}},
    "others beside": lambda s: {**s, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}},
    "the same twice": lambda s: {"model": s, "state_dict": prefixed(s, "teacher.")},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_wherever_a_script_has_put_them(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = network(seed=0), network(seed=1)
    save_zip(FORMS[form](source.state_dict()), tmp_path / "w.ckpt")
    load_weights(target, tmp_path / "w.ckpt")
    assert checksum(target) == checksum(source)
    assert not caplog.records


@pytest.mark.parametrize("form", ["any prefix", "compiled inside", "averaged"])
def test_prefixes_are_taken_off_in_safetensors_too(form: str, tmp_path: Path) -> None:
    source, target = network(seed=0), network(seed=1)
    save_file(FORMS[form](source.state_dict()), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert checksum(target) == checksum(source)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_lightning_with_all_that_it_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hyper-parameters of any class, optimizers, schedulers, loops and callbacks."""

    class Net(LightningModule):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = network(seed=0)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.model(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])]

    options = argparse.Namespace(root=tmp_path, score=np.float64(0.5), colour=Colour.RED)
    module = Net(options=options, act=nn.functional.relu, layer=nn.ReLU())
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(4, 3, 8, 8)), batch_size=2
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, logger=False,
        enable_checkpointing=True, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    path = tmp_path / "epoch=0-step=2.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    target = network(seed=1)
    load_weights(target, path)
    assert checksum(target) == checksum(module.model)
    (record,) = (r for r in caplog.records if r.name.startswith("hast_lightning"))
    assert "which is not imported: only its tensors are read" in record.getMessage()


@pytest.mark.parametrize("place", ["hyper_parameters", "callbacks", "name"])
def test_objects_beside_the_weights_are_never_made(place: str, tmp_path: Path) -> None:
    created, path, source = tmp_path / "created", tmp_path / "w.ckpt", network(seed=0)
    payload = Payload(created)
    content: dict[Any, Any] = {"state_dict": prefixed(source.state_dict(), "model.")}
    content[payload if place == "name" else place] = {"deep": [payload, {"x": payload}]}
    save_zip(content, path)
    target = network(seed=1)
    load_weights(target, path)
    assert checksum(target) == checksum(source)
    assert not created.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torchscript_is_not_opened(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(network(), torch.randn(1, 3, 8, 8)), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="an archive of TorchScript"):
        read_tensors_beside_objects(tmp_path / "w.pt")
    refusal(load_weights, network(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("plain", "average", "prefix"),
    [
        ("state_dict", "state_dict_ema", ""),
        ("model", "model_ema", "module."),
        ("model", "ema", ""),
        ("params", "params_ema", ""),
        ("state_dict", "callbacks", "EMA."),
    ],
)
def test_plain_weights_are_taken_and_a_line_says_how_to_take_their_average(
    plain: str, average: str, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, target = network(seed=0), network(seed=1), network(seed=2)
    save_zip(
        {average: prefixed(second.state_dict(), prefix), plain: first.state_dict()},
        tmp_path / "w.pth",
    )
    load_weights(target, tmp_path / "w.pth")
    assert checksum(target) == checksum(first)
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"those at {plain} are taken, not the average over the training" in line
    key = line.split("model.checkpoint_key=")[1].split()[0]
    for choice in (key, average):
        load_weights(target, tmp_path / "w.pth", key=choice)
        assert checksum(target) == checksum(second), choice
    load_weights(target, tmp_path / "w.pth", key=plain)
    assert checksum(target) == checksum(first)


def test_where_nothing_tells_which_weights_are_meant_the_user_is_asked(tmp_path: Path) -> None:
    path, target = tmp_path / "w.ckpt", network(seed=2)
    both = {
        **prefixed(network(seed=0).state_dict(), "student."),
        **prefixed(network(seed=1).state_dict(), "teacher."),
    }
    save_zip({"state_dict": both}, path)
    message = refusal(load_weights, target, path)
    assert "choose one with model.checkpoint_key=state_dict.student or " in message
    load_weights(target, path, key="teacher")
    assert checksum(target) == checksum(network(seed=1))
    with pytest.raises(ModelError, match=r"checkpoint_key=pupil: .* it has state_dict"):
        load_weights(target, path, key="pupil")


def test_places_are_found_in_the_order_of_the_file() -> None:
    """Not in that of a set, which differs between two processes."""
    own = network(seed=0).state_dict()
    prefixes = [f"{word}." for word in ("zeta", "beta", "eta", "alpha", "theta", "gamma", "delta")]
    everything = {n: v for prefix in prefixes for n, v in prefixed(own, prefix).items()}
    places = [weights.key for weights in find_weights(everything, own) if weights.fits(own)]
    assert places == [prefix.rstrip(".") for prefix in prefixes]


def test_weights_of_another_network_are_refused_by_their_own_names(tmp_path: Path) -> None:
    """With the prefix off, so that the names can be compared."""
    state = network(depth=14).state_dict()
    save_zip({"state_dict": prefixed(state, "model.")}, tmp_path / "w.pth")
    message = refusal(load_weights, network(depth=8), tmp_path / "w.pth")
    assert "another architecture: it has layer1.1.bn1.bias" in message
    save_zip(
        {"state_dict": prefixed(network(classes=7).state_dict(), "model.")}, tmp_path / "w.pth"
    )
    message = refusal(load_weights, network(), tmp_path / "w.pth")
    assert "is for 7 classes, the network for 5: set model.num_classes=7" in message


def test_a_file_that_nests_without_end_is_refused_at_once(tmp_path: Path) -> None:
    content: Any = {"x": torch.ones(1)}
    for _ in range(300):
        content = {"model": content, "state_dict": {"a": 1}}
    save_zip(content, tmp_path / "w.pth")
    refusal(load_weights, network(), tmp_path / "w.pth")


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


def test_another_width_of_the_last_layer_is_not_called_classes(tmp_path: Path) -> None:
    """As that of images of another size, which are flattened before it."""
    layers = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(width, 5)) for width in (16, 8)]
    message = refused_weights(layers[0], layers[1], tmp_path / "w.pth")
    assert "1.weight has the shape (5, 16), the network expects (5, 8)" in message
    assert "classes" not in message


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
