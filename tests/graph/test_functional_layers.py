"""Functions with weights as layers, and what becomes of these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.export.artifact import open_artifact, write_artifact
from hast_lightning.export.frozen import freeze
from hast_lightning.models.preparation import prepare
from hast_lightning.quantization.equalization import equalized
from tests.export.families import calibrated, noise
from tests.export.test_packed import DESCRIPTION

SHAPE, CLASSES = (3, 8, 8), 5


class Normalizing(nn.Module):
    """Normalizes by a function, with weight and bias or without."""

    def __init__(self, weight: bool, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, CLASSES)
        self.register_buffer("mean", 0.3 * torch.randn(8))
        self.register_buffer("variance", torch.rand(8) + 0.5)
        self.weight = nn.Parameter(3 * torch.rand(8) + 0.1) if weight else None
        self.bias = nn.Parameter(torch.randn(8)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.mean, self.variance
        x = F.relu(F.batch_norm(self.first(x), *statistics, self.weight, self.bias))  # type: ignore[arg-type]
        return self.head(F.relu(self.second(x)).mean((2, 3)))


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_batch_norm_has_the_weight_and_bias_that_the_function_is_given(
    weight: bool, bias: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, images = Normalizing(weight, bias).eval(), noise(8, *SHAPE)
    prepared, _ = prepare(network, SHAPE, "normalizing")
    (norm,) = (layer for layer in prepared.modules() if isinstance(layer, nn.BatchNorm2d))
    assert norm.affine == (weight or bias) == (norm.weight is not None)
    expected = network(images)
    given = PretrainedNetwork(prepared, "any", SHAPE, CLASSES, (0.5,) * 3, (0.5,) * 3, "")
    for each in (prepared, equalized(given, per_tensor=True).network):
        torch.testing.assert_close(each(images), expected, rtol=1e-4, atol=1e-5)
    student = calibrated(prepared, 8, images=images)
    description = replace(DESCRIPTION, input_shape=SHAPE, num_classes=CLASSES, class_names=None)
    path = tmp_path / "student.safetensors"
    write_artifact("packed", freeze(student), description, path)
    torch.testing.assert_close(open_artifact(path)[0](images), student(images))
