"""Layers that a network calls several times, where it is rebuilt unit by unit."""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from hast_lightning.config import ModelConfig
from hast_lightning.models.pretrained import describe
from hast_lightning.training.module import ZeroShotQuantization
from tests.export.families import as_if_trained
from tests.graph.test_units import Recurring
from tests.small_runs import build_module, fit, small

RECONSTRUCT = (
    "method=reconstruct",
    "stages.correction.samples=16",
    "stages.reconstruction.samples=16",
    "stages.reconstruction.iterations=3",
    "stages.reconstruction.batch_size=8",
)


class Watching(Callback):
    """Keeps the parameters of the recurring layers as they are behind each unit, by its number."""

    def __init__(self) -> None:
        self.behind: dict[int, list[Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: object) -> None:
        assert isinstance(module, ZeroShotQuantization)
        recurring = module.student.get_submodule("again").parameters()
        number = module.stages["reconstruction"]._at
        assert isinstance(number, int)
        self.behind[number] = [parameter.detach().clone() for parameter in recurring]


def test_a_layer_that_is_called_again_trains_in_its_first_unit_alone() -> None:
    torch.manual_seed(0)
    config = ModelConfig(provider="given", name="recurring")
    network = describe(as_if_trained(Recurring()), config, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    module, watching = build_module(small(*RECONSTRUCT), network), Watching()
    fit(module, [watching])
    stem, recurring, head = (watching.behind[number] for number in range(3))
    assert not all(map(torch.equal, stem, recurring))
    assert all(map(torch.equal, recurring, head))
