"""The bundled digits teacher: its score, its BatchNorm statistics, and the script behind it."""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from hast_lightning.data.evaluation import digits
from hast_lightning.models.resnet import CifarResNet

SCRIPT = Path(__file__).parents[2] / "experiments" / "digits_resnet" / "train.py"
BUNDLED = Path(str(resources.files("hast_lightning") / "models/weights/digits_resnet.safetensors"))


class Saved(NamedTuple):
    network: CifarResNet
    metadata: dict[str, str]


def read(path: Path) -> Saved:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    network = CifarResNet(int(metadata["depth"]), 10, 1, int(metadata["width"]))
    network.load_state_dict(weights)
    return Saved(network.eval(), metadata)


def images_and_labels(*, held_out: bool) -> tuple[Tensor, Tensor]:
    pixels, labels = digits(held_out=held_out)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 16
    return images * 2 - 1, torch.from_numpy(labels)


@torch.no_grad()
def count_correct(network: nn.Module) -> int:
    images, labels = images_and_labels(held_out=True)
    return int((network(images).argmax(dim=1) == labels).sum())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_resnet_train", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bundled_weights_score_what_their_metadata_record() -> None:
    network, metadata = read(BUNDLED)
    correct = count_correct(network)
    assert metadata["held_out_images"] == "599"
    assert correct / 599 >= 0.97
    assert correct == int(metadata["held_out_correct"])


def test_bundled_weights_are_small_and_say_how_they_were_trained() -> None:
    network, metadata = read(BUNDLED)
    assert BUNDLED.stat().st_size <= 400_000
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert "index % 3 != 0" in metadata["training"]
    assert "last epoch" in metadata["training"]


@torch.no_grad()
def test_batch_norm_statistics_have_settled_on_the_shifted_training_digits(
    script: ModuleType,
) -> None:
    network, _ = read(BUNDLED)
    generator = torch.Generator().manual_seed(1)
    images, _ = images_and_labels(held_out=False)
    measured = []

    def measure(module: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
        distance = (mean - module.running_mean).abs() / module.running_var.sqrt()
        ratio = variance / module.running_var
        measured.append((float(distance.max()), float(ratio.log().abs().max())))

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(measure)
    network(torch.cat([script.shift(images, generator) for _ in range(4)]))
    assert len(measured) == 7
    # Means to a twentieth of a standard deviation, variances to a tenth.
    assert all(distance < 0.05 and ratio < 0.1 for distance, ratio in measured), measured


def test_script_trains_scores_and_saves_deterministically(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = BUNDLED.read_bytes()
    paths = [tmp_path / "first" / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        script.main(["--epochs", "2", "--width", "8", "--output", str(path)])
    printed = capsys.readouterr().out.splitlines()
    (first, metadata), (second, _) = (read(path) for path in paths)
    assert metadata["width"] == "8"
    correct = count_correct(first)
    assert correct == int(metadata["held_out_correct"])
    assert printed[0] == f"held-out top-1: {correct}/599 = {100 * correct / 599:.2f} %"
    assert correct > 200, "two epochs should learn something: guessing gives about 60"
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert BUNDLED.read_bytes() == before


def test_shifts_move_whole_images_by_at_most_a_pixel(script: ModuleType) -> None:
    image = torch.full((1, 1, 8, 8), script.BLACK)
    image[0, 0, 4, 4] = 1.0
    shifted = script.shift(image.expand(500, 1, 8, 8), torch.Generator().manual_seed(0))
    assert shifted.shape == (500, 1, 8, 8)
    bright = {tuple(place) for place in (shifted[:, 0] == 1).nonzero()[:, 1:].tolist()}
    assert bright == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    assert torch.equal(shifted.sum(dim=(1, 2, 3)), torch.full((500,), -62.0))
