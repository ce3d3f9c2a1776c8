"""A packed file does not depend on the version of torch that wrote it, nor on the one that reads.

``layers.safetensors`` was written with torch 2.11 and, byte for byte the same, with torch 2.15.
The newer one's normalization layers take an argument that the older one's do not know.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from hast_lightning.errors import ModelError
from hast_lightning.export.architecture import build
from hast_lightning.export.frozen import freeze
from hast_lightning.export.packed import ARCHITECTURE_KEY, read_packed, write_packed
from hast_lightning.graph.arguments import arguments_of
from tests.export.families import CLASSES, SHAPE, calibrated, noise
from tests.export.test_packed import DESCRIPTION

STORED = Path(__file__).parent / "layers.safetensors"
LOGITS = (0.200795, -1.800802, 1.023377, -0.017824, -1.726112)
"""Of the first classes, for the first image of ``noise(4, *SHAPE, seed=7)``."""


class Layers(nn.Module):
    """Every kind of layer whose constructor has changed between versions of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norms = nn.ModuleList(
            [
                nn.BatchNorm2d(8),
                nn.GroupNorm(2, 8),
                nn.GroupNorm(2, 8, affine=False),
                nn.InstanceNorm2d(8),
                nn.InstanceNorm2d(8, affine=True),
                nn.BatchNorm2d(8, affine=False),
                nn.LayerNorm([8, 16, 16], elementwise_affine=False),
            ]
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.stem(images))
        for norm in self.norms:
            features = torch.relu(norm(features)) + features
        return self.head(features.mean(dim=(2, 3)))


def architecture_in(path: Path) -> object:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[ARCHITECTURE_KEY])


def test_a_stored_file_is_read_and_computes_the_same() -> None:
    network, description = read_packed(STORED)
    with torch.no_grad():
        logits = network(noise(4, *SHAPE, seed=7))
    torch.testing.assert_close(logits[0, :5], torch.tensor(LOGITS), rtol=1e-4, atol=1e-4)
    assert description.network == DESCRIPTION.network


def test_the_same_network_is_described_alike_by_every_version(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frozen = freeze(calibrated(Layers().eval(), 4, 8))
    write_packed(frozen, DESCRIPTION, tmp_path / "student.safetensors")
    assert architecture_in(tmp_path / "student.safetensors") == architecture_in(STORED)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, (3, 1), stride=(2, 1), padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding_mode="reflect", bias=False),
        nn.BatchNorm2d(4, eps=1e-3, momentum=None),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        nn.InstanceNorm2d(4),
        nn.LayerNorm(4, bias=False),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.LeakyReLU(0.01),
        nn.LeakyReLU(0.2),
        nn.Linear(4, 2, bias=False),
    ],
    ids=repr,
)
def test_arguments_construct_the_same_layer(layer: nn.Module) -> None:
    again = type(layer)(**arguments_of(layer, type(layer)))
    assert repr(again) == repr(layer)
    assert again.state_dict().keys() == layer.state_dict().keys()


def test_an_argument_of_a_newer_torch_is_named() -> None:
    description = {
        "nodes": [],
        "layers": {
            "norm": {
                "kind": "BatchNorm2d",
                "arguments": {"dict": {"num_features": 4, "shade": True}},
            }
        },
        "tensors": {},
    }
    with pytest.raises(ModelError, match=r"its BatchNorm2d has the arguments shade, which torch"):
        build(description)
