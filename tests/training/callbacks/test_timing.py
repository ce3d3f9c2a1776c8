from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from hast_lightning.core.batch import Progress
from hast_lightning.training.callbacks import timing
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint
from hast_lightning.training.callbacks.timing import StageTimer

SECONDS = {"synthesis": 5.0, "distillation": 0.5}
STEPS = [
    Progress("synthesis", 1, 2),
    Progress("synthesis", 2, 2),
    Progress("distillation", 1, 3),
    Progress("distillation", 2, 3),
    Progress("distillation", 3, 3),
]


class Clock:
    """A perf_counter that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


class Staged(LightningModule):
    """Every step takes as long as its stage says, on the given clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clock = clock
        self.progress = STEPS[0]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.progress = STEPS[int(batch)]
        self.clock.now += SECONDS[self.progress.stage]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Staged, callbacks: list[Callback], start: int = 0, stop: int = 5) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        callbacks=callbacks,
    )
    trainer.fit(module, DataLoader(range(start, stop), batch_size=None))  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_every_step_is_charged_to_its_stage(clock: Clock) -> None:
    timer = StageTimer()
    fit(Staged(clock), [timer])
    assert timer.seconds == {"synthesis": 10.0, "distillation": 1.5}


def test_time_between_steps_belongs_to_the_later_one(clock: Clock) -> None:
    class Slow(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, *_: object
        ) -> None:
            clock.now += 100 if pl_module.progress == STEPS[1] else 0

    timer = StageTimer()
    fit(Staged(clock), [timer, Slow()])
    assert timer.seconds == {"synthesis": 10.0, "distillation": 101.5}


def test_a_new_timer_goes_on_from_the_checkpoint(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    fit(Staged(clock), [StageTimer(), LastCheckpoint(path, every_n_steps=100)], stop=3)
    state = torch.load(path, weights_only=True)["callbacks"][StageTimer().state_key]
    resumed = StageTimer()
    resumed.load_state_dict(state)
    assert resumed.seconds == {"synthesis": 10.0, "distillation": 0.5}
    fit(Staged(clock), [resumed], start=3)
    assert resumed.seconds == {"synthesis": 10.0, "distillation": 1.5}


def test_cuda_is_waited_for_only_where_a_stage_ends(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[Progress] = []
    module, timer = Staged(clock), StageTimer()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(Staged, "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(module.progress))
    timer.on_train_start(trainer, module)
    for module.progress in STEPS:
        timer.on_train_batch_end(trainer, module, None, None, 0)
    assert waited == [STEPS[1], STEPS[4]]
