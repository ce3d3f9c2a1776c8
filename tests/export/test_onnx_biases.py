"""What a channel puts out when its weights have next to no scale, in an engine of integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from hast_lightning.export.artifact import open_artifact, write_artifact
from hast_lightning.export.frozen import FrozenWeight, freeze
from hast_lightning.export.onnx_biases import LARGEST_BIAS, Layer, widened
from hast_lightning.quantization.fake_quant import activation_quantizers
from hast_lightning.quantization.learned import LSQ
from hast_lightning.quantization.placement import Integer
from tests.export.families import CLASSES, SHAPE, calibrated, noise
from tests.export.test_packed import DESCRIPTION

WIDTH = 16
FACTORS = (1e-3, 1e-5, 1e-6, -1e-6, 1e-8, 1e-20, 1e-38, 1e-42, 0.0)
"""From what weight decay leaves of a channel to what float32 has no more digits for."""
QUANTIZERS: dict[str, dict[str, Any]] = {
    "minmax": {},
    "lsq": {"ranges": LSQ(), "gradient": "clipped"},
    "deploy": {"placement": Integer(), "include_zero": True},
}
ROUNDED_BIASES = 5e-3
"""Distance from the student of an engine that rounds biases, as a share of the logits' spread."""


class Tokens(nn.Module):
    """A linear layer that is applied at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape)


def normalized(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(WIDTH))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution and BatchNorm": lambda: normalized(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
    "depthwise": lambda: normalized(nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH, bias=False)),
    "convolution": lambda: nn.Conv2d(WIDTH, WIDTH, 1),
    "linear": lambda: nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(WIDTH, WIDTH)),
    "linear at every place": Tokens,
}


@torch.no_grad()
def network(kind: str) -> nn.Module:
    """A layer of a kind between two others, whose channels are switched off one by one."""
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    last = [layer for layer in layer.modules() if getattr(layer, "bias", None) is not None][-1]
    for channel, factor in enumerate(FACTORS):
        last.weight[channel] *= factor  # type: ignore[index,operator]
        last.bias[channel] = channel % 3 - 0.5  # type: ignore[index,operator]
    stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())
    head = [] if kind == "linear" else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    made = nn.Sequential(stem, layer, nn.ReLU(), *head, nn.Linear(WIDTH, CLASSES)).train()
    for seed in range(4):
        made(noise(16, *SHAPE, seed=seed))
    return made.eval()


def distance(student: fx.GraphModule, folder: Path) -> float:
    """How far the student in onnxruntime is from the student, as a share of the logits' spread."""
    write_artifact("onnx", freeze(student), DESCRIPTION, folder / "student.onnx")
    images = noise(32, *SHAPE, seed=9)
    with torch.no_grad():
        expected = student(images)
    found = open_artifact(folder / "student.onnx")[0](images)
    spread = expected - expected.mean(dim=1, keepdim=True)
    return float((found - expected).norm() / spread.norm())


@pytest.mark.parametrize(
    ("kind", "quantizer"),
    [(kind, quantizer) for kind in LAYERS for quantizer in ("minmax", "deploy")]
    + [("convolution and BatchNorm", "lsq")],
)
def test_channels_that_are_switched_off_keep_their_bias(
    kind: str, quantizer: str, tmp_path: Path
) -> None:
    student = calibrated(network(kind), 8, **QUANTIZERS[quantizer])
    assert distance(student, tmp_path) < ROUNDED_BIASES


@pytest.mark.parametrize(
    ("place", "factor", "quantizer"),
    [
        (0, 1e-8, "deploy"),
        (0, 1e4, "deploy"),
        (1, 1e-8, "deploy"),
        (1, 1e4, "deploy"),
        (0, 1e4, "minmax"),
        (1, 1e-8, "minmax"),
    ],
)
def test_a_range_that_is_stretched_or_shrunk_costs_no_bias(
    place: int, factor: float, quantizer: str, tmp_path: Path
) -> None:
    student = calibrated(network("convolution and BatchNorm"), 8, **QUANTIZERS[quantizer])
    chosen = activation_quantizers(student)[place]
    low = -chosen.zero_point * chosen.scale * factor
    chosen.set_range(low, low + 255 * chosen.scale * factor)
    assert distance(student, tmp_path) < ROUNDED_BIASES


@pytest.mark.parametrize("zero_point", [0.0, 3.0, 4.0, 7.0])
def test_what_a_larger_scale_rounds_away_is_nothing_beside_the_bias(zero_point: float) -> None:
    integers = torch.randint(8, (3, 5), generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([[1e-3], [1e-9], [-1e-9]])
    weight = FrozenWeight(integers.to(torch.uint8), scale, torch.full((3, 1), zero_point), 3)
    layer = Layer("out", "weights", step=0.01, bias=torch.tensor([1.0, -2.0, 2.0]))
    fitted = widened([layer], {"weights": weight})["weights"]
    # The first channel is as it was, the others keep their signs and have integers that exist.
    assert torch.equal(fitted()[0], weight()[0])
    assert torch.equal(fitted.scale.sign(), weight.scale.sign())
    assert int(fitted.integers.max()) <= 7
    biases, scales = layer.integers(fitted)
    assert bool((biases.abs() <= LARGEST_BIAS).all())
    assert torch.allclose(biases * scales, layer.bias.double(), rtol=1e-6)
    lost = (fitted() - weight()).abs().max() * layer.step
    assert float(lost) < 2 / LARGEST_BIAS
