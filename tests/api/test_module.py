"""A quantized network is a module like any other, and goes to model hubs and back."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hast_lightning import QuantizedModel, quantize
from hast_lightning.api import hub
from hast_lightning.errors import ConfigurationError, DataError, UserError
from tests.small_calls import INPUT, SHORT, digits_network


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    return quantize(digits_network(), bits=4, method="hast", overrides=SHORT, **INPUT)


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_is_called_as_a_module(model: QuantizedModel) -> None:
    assert isinstance(model, nn.Module)
    assert torch.equal(model(images()), model.predict(images()).logits)
    outer = nn.Sequential(model, nn.Softmax(dim=1))
    assert torch.allclose(outer(images()).sum(dim=1), torch.ones(6))


def test_it_stays_in_evaluation_mode_and_takes_no_gradient(model: QuantizedModel) -> None:
    assert not model.train().training
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_its_state_can_be_saved_and_loaded_by_torch(model: QuantizedModel) -> None:
    state = model.state_dict()
    other = copy.deepcopy(model)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(state)
    assert torch.equal(other(images()), model(images()))


def test_it_moves_to_another_type_of_device(model: QuantizedModel) -> None:
    moved = copy.deepcopy(model).to("meta")
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}
    assert moved(images().to("meta")).shape == (6, 10)


def test_it_says_the_bits_of_every_layer(model: QuantizedModel) -> None:
    assert set(model.bits.values()) == {4}
    assert len(model.bits) == 8
    assert set(model.activation_bits.values()) == {4}
    mixed = quantize(
        digits_network(), bits={"linear": 8, "*": 4}, method="hast", overrides=SHORT, **INPUT
    )
    assert mixed.bits["linear"] == 8
    assert "mixed" in repr(mixed)


def test_accuracy_is_measured_on_labeled_images(model: QuantizedModel) -> None:
    answers = model.predict(images(40)).labels
    wrong = answers.clone()
    wrong[:10] = (wrong[:10] + 1) % 10
    assert model.evaluate((images(40), answers)) == 100
    loader = DataLoader(TensorDataset(images(40), wrong), batch_size=16)
    assert model.evaluate(loader) == 75
    with pytest.raises(DataError, match="shape"):
        model.evaluate((images(4)[:, :, :5], answers[:4]))


def test_files_and_folders_are_read_by_one_name(model: QuantizedModel, tmp_path: Path) -> None:
    file = model.save(tmp_path / "some.safetensors")
    for place in (file, str(file), tmp_path):
        assert torch.equal(QuantizedModel.from_pretrained(place)(images()), model(images()))


class Hub:
    """What huggingface_hub offers, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []

    def HfApi(self, token: str | None) -> Hub:  # noqa: N802  # as the library calls it
        assert token == "secret"
        return self

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        assert private and exist_ok
        if name == "nobody/forbidden":
            raise PermissionError("403 Forbidden\nmore of it")
        return f"hub://{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
        shutil.copytree(folder_path, self.folder / repo_id)

    def hf_hub_download(self, name: str, file: str, revision: str | None) -> str:
        self.asked.append((name, revision))
        path = self.folder / name / file
        if not path.exists():
            raise FileNotFoundError("404 Client Error")
        return str(path)


def test_it_goes_to_a_hub_and_back(
    model: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: Any = Hub(tmp_path)
    monkeypatch.setattr(hub, "_hub", lambda: place)
    address = model.push_to_hub("somebody/digits", private=True, token="secret")
    assert address == "hub://somebody/digits"
    card = (tmp_path / "somebody/digits/README.md").read_text(encoding="utf-8")
    assert "# given W4A4" in card or "W4A4" in card
    again = QuantizedModel.from_pretrained("somebody/digits", revision="v1")
    assert place.asked == [("somebody/digits", "v1")]
    assert torch.equal(again(images()), model(images()))
    with pytest.raises(ConfigurationError, match=r"403 Forbidden$"):
        model.push_to_hub("nobody/forbidden", private=True, token="secret")
    with pytest.raises(UserError, match="neither a file or folder here nor a repository"):
        QuantizedModel.from_pretrained("somebody/other")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ConfigurationError, match=r"hast-lightning\[hub\]"):
        QuantizedModel.from_pretrained("somebody/digits")
