"""Networks with something strange in them, from a module to files that answer as it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hast_lightning import QuantizedModel, quantize
from hast_lightning.errors import UserError
from hast_lightning.export.artifact import open_artifact
from hast_lightning.graph.heads import restore_head
from hast_lightning.runs.prediction import predict
from tests.command_line import TINY
from tests.export.families import as_if_trained, noise

SHAPE = (1, 8, 8)
INPUT: dict[str, Any] = {"input_shape": SHAPE, "mean": [0.5], "std": [0.5]}
# The student stays what it is calibrated to, so that at 8 bits it answers as the network.
KEPT = [*TINY, "trainer.threads=1", "stages.distillation.optimizer.lr=1e-9"]
AWAY = 0.25
"""Of the spread of the network's outputs, how far those of 8 bits may be."""


class Plain(nn.Module):
    """Two convolutions of two resolutions, no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        )
        self.linear = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.linear(self.body(x).mean((2, 3)))


class Softmax(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Sigmoid(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class LogSoftmax(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(1)


class Keywords(Plain):
    def forward(self, x: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        return super().forward(x if mask is None else x * mask)


class Twice(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body[-1] = nn.ReLU(inplace=True)
        self.body.append(nn.ReLU6(inplace=True))


def hooked() -> nn.Module:
    network = Plain()
    network.body[2].register_forward_hook(lambda _, __, output: output + 1)
    return network


STRANGE: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "softmax": Softmax,
    "sigmoid": Sigmoid,
    "log-softmax": LogSoftmax,
    "keywords": Keywords,
    "in place twice": Twice,
    "hooks": hooked,
}


def away(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / (expected - expected.mean(0)).norm())


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_network_and_its_files_answer_as_it_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = as_if_trained(STRANGE[name]())
    images = noise(32, *SHAPE)
    with torch.no_grad():
        expected = network(images.clone())
    found = quantize(network, 8, method="hast", schedule="demo", overrides=KEPT, **INPUT)
    assert away(found.network(images), expected) < AWAY
    answers = found.predict(images)
    if name in ("softmax", "sigmoid"):
        assert torch.equal(answers.probabilities, found.network(images))
        assert bool((answers.logits.softmax(1).argmax(1) == answers.labels).all())
    if name == "log-softmax":
        assert torch.equal(answers.logits, found.network(images))
    path = found.save(tmp_path / "student.safetensors")
    loaded = QuantizedModel.load(path)
    assert torch.equal(loaded.network(images), found.network(images))
    assert torch.equal(loaded.predict(images).probabilities, answers.probabilities)
    assert loaded.description.output == (
        name.replace("-", "_") if name in ("softmax", "sigmoid", "log-softmax") else "logits"
    )


@pytest.mark.parametrize("kind", [Softmax, Sigmoid])
def test_probabilities_are_the_networks_own_in_every_file(
    kind: Callable[[], nn.Module], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    found = quantize(
        as_if_trained(kind()), 8, method="hast", schedule="demo", overrides=KEPT, **INPUT
    )
    assert restore_head(found.network) is found.network
    images = noise(16, *SHAPE)
    expected = found.network(images)
    for path in (
        found.save(tmp_path / "a.safetensors"),
        found.export_onnx(tmp_path / "a.onnx"),
        found.export_program(tmp_path / "a.pt2"),
    ):
        exported, description = open_artifact(path)
        assert float((exported(images) - expected).abs().median()) < 1e-3
        torch.testing.assert_close(description.probabilities(exported(images)), exported(images))
    picture = tmp_path / "one.png"
    pixels = (images[0, 0] * 40 + 128).clamp(0, 255).to(torch.uint8)
    from PIL import Image

    Image.fromarray(pixels.numpy()).save(picture)
    predict(tmp_path / "a.safetensors", picture, tmp_path / "table.csv")
    told = float((tmp_path / "table.csv").read_text().splitlines()[1].split(",")[3])
    assert told == pytest.approx(float(found.predict(picture).probabilities.max()), abs=1e-6)


class TopK(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).topk(6, sorted=False).values


class Fourier(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.fft.fft2(x).abs())


class VarMean(Plain):
    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=(1, 2, 3), keepdim=True)
        return super().forward((x - mean) / (var + 1e-5).sqrt())


class Batchwise(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body[1] = nn.BatchNorm2d(8, track_running_stats=False)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (TopK, r"calls \.topk"),
        (Fourier, "calls fft_fft2"),
        (VarMean, "calls var_mean"),
        (Batchwise, "has no running statistics"),
    ],
)
def test_what_no_file_can_hold_is_refused_before_any_work(
    kind: Callable[[], nn.Module], reason: str, tmp_path: Path
) -> None:
    network = kind()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            layer.running_mean.normal_()
    with pytest.raises(UserError, match=reason) as refusal:
        quantize(
            network.eval(),
            8,
            method="hast",
            schedule="demo",
            overrides=["trainer.accelerator=cpu"],
            folder=tmp_path / "run",
            **INPUT,
        )
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(1, 49, 10), (1, 9, 7)])
def test_images_of_any_size_are_made(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = as_if_trained(Plain())
    options = {**INPUT, "input_shape": shape}
    found = quantize(network, 8, method="gdfq", schedule="demo", overrides=TINY, **options)
    assert found.predict(noise(2, *shape)).logits.shape == (2, 6)
