from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from hast_lightning.core.batch import Progress
from hast_lightning.errors import StorageError
from hast_lightning.runtime.interruption import Interruption
from hast_lightning.training.callbacks import checkpoint as checkpoint_module
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint


class Counter(LightningModule):
    """Counts its steps and fails at the one it is told to; two optimizers, as in a real run.

    Its stages have ``stage`` steps each.
    """

    def __init__(
        self,
        fail_at: int | None = None,
        error: type[BaseException] = RuntimeError,
        stage: int = 1000,
        signals: dict[int, list[signal.Signals]] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weights = torch.nn.ParameterList([torch.zeros(1), torch.zeros(1)])
        self.register_buffer("iteration", torch.tensor(0))
        self.fail_at = fail_at
        self.error = error
        self.stage = stage
        self.signals = signals or {}

    @property
    def progress(self) -> Progress:
        stage, step = divmod(int(self.iteration) - 1, self.stage)
        return Progress(f"stage {stage}", step + 1, self.stage)

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.iteration += 1
        for sign in self.signals.get(int(self.iteration), ()):
            signal.raise_signal(sign)
        for weight, optimizer in zip(self.weights, self.optimizers(), strict=True):
            optimizer.zero_grad()
            weight.sum().backward()
            optimizer.step()
        if int(self.iteration) == self.fail_at:
            raise self.error("step failed")

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([w], lr=0.1, momentum=0.9) for w in self.weights]


class Recorder(LastCheckpoint):
    """Also remembers the iteration of each file that came into place."""

    def __init__(self, path: Path, every_n_steps: int) -> None:
        super().__init__(path, every_n_steps)
        self.saved: list[int] = []

    def save(self, trainer: Trainer) -> None:
        super().save(trainer)
        self.saved.append(iteration(self.path))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def iteration(path: Path) -> int:
    return int(read(path)["state_dict"]["iteration"])


def fit(
    module: Counter, callback: LastCheckpoint, steps: int, ckpt_path: Path | None = None
) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        callbacks=[callback],
    )
    loader = DataLoader(range(steps), batch_size=None)  # type: ignore[arg-type]
    with callback.interruption.awaited():
        trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)


def test_saves_every_n_batches_and_at_the_end(tmp_path: Path) -> None:
    # Two optimizers: an interval counted in trainer.global_step would come twice as often.
    callback = Recorder(tmp_path / "run" / "last.ckpt", every_n_steps=3)
    fit(Counter(), callback, steps=7)
    assert callback.saved == [3, 6, 7]


def test_file_holds_the_full_state_and_no_other_file_is_left(tmp_path: Path) -> None:
    fit(Counter(), LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=2), steps=2)
    assert [child.name for child in tmp_path.iterdir()] == ["last.ckpt"]
    content = read(tmp_path / "last.ckpt")
    assert {"state_dict", "optimizer_states", "loops", "callbacks"} <= content.keys()
    assert len(content["optimizer_states"]) == 2
    assert content["optimizer_states"][0]["state"][0]["momentum_buffer"].item() > 1


def test_a_run_goes_on_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    whole = Counter()
    fit(whole, LastCheckpoint(tmp_path / "whole.ckpt", every_n_steps=100), steps=6)
    with pytest.raises(RuntimeError):
        fit(Counter(fail_at=5), LastCheckpoint(path, every_n_steps=4), steps=6)
    resumed = Counter()
    fit(resumed, LastCheckpoint(path, every_n_steps=4), steps=6, ckpt_path=path)
    assert int(resumed.iteration) == 6
    assert torch.equal(resumed.weights[0], whole.weights[0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_saved_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    callback = LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=2)
    # Lightning turns the interrupt of a user into an orderly exit.
    with pytest.raises((RuntimeError, SystemExit)):
        fit(Counter(fail_at=3, error=error), callback, steps=6)
    assert iteration(callback.path) == 2
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    callback.on_train_end(trainer, Counter())
    assert iteration(callback.path) == 2


def test_the_callback_can_be_used_again_after_a_failure(tmp_path: Path) -> None:
    callback = LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=2)
    with pytest.raises(RuntimeError):
        fit(Counter(fail_at=1), callback, steps=2)
    assert not callback.path.exists()
    fit(Counter(), callback, steps=5)
    assert iteration(callback.path) == 5


def test_a_crash_while_saving_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=2)
    fit(Counter(), callback, steps=2)

    def crash(path: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint_module, "_flush", crash)
    with pytest.raises(StorageError, match=r"disk full.*what was saved before is kept"):
        fit(Counter(), callback, steps=4)
    assert iteration(callback.path) == 2
    assert [child.name for child in tmp_path.iterdir()] == ["last.ckpt"]


def test_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    flushed: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        checkpoint_module, "_flush", lambda target: flushed.append((target.name, path.exists()))
    )
    fit(Counter(), LastCheckpoint(path, every_n_steps=100), steps=1)
    assert flushed == [(".last.ckpt.tmp", False), (tmp_path.name, True)]


def test_other_ranks_take_part_but_leave_the_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    calls: list[str] = []

    class Strategy:
        def barrier(self, name: str) -> None:
            calls.append("barrier")

    class SecondRank:
        is_global_zero = False
        strategy = Strategy()

        def save_checkpoint(self, target: Path, weights_only: bool) -> None:
            calls.append(f"{target.name} {weights_only}")
            target.write_text("rank zero is writing")

    LastCheckpoint(path, every_n_steps=1).save(SecondRank())  # type: ignore[arg-type]
    assert calls == [".last.ckpt.tmp False", "barrier"]
    assert [child.name for child in tmp_path.iterdir()] == [".last.ckpt.tmp"]


def test_interval_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_n_steps=0"):
        LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=0)


def test_saves_when_the_minutes_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: 10.0 * next(clock))
    callback = Recorder(tmp_path / "last.ckpt", every_n_steps=100)
    callback.every_n_minutes = 0.5
    fit(Counter(), callback, steps=7)
    # The clock moves by ten seconds a look: one a batch, and one when a file was saved.
    assert callback.saved == [3, 6, 7]


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    fit(Counter(), LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=2, kept=3), steps=8)
    kept = {child.name: iteration(child) for child in tmp_path.iterdir()}
    assert kept == {"last.ckpt": 8, "last.1.ckpt": 6, "last.2.ckpt": 4}


def test_saves_at_the_end_of_every_stage(tmp_path: Path) -> None:
    callback = Recorder(tmp_path / "last.ckpt", every_n_steps=4)
    fit(Counter(stage=3), callback, steps=8)
    assert callback.saved == [3, 4, 6, 8]


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_a_run_from_outside_loses_no_step(
    tmp_path: Path, at: int, sign: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """The step in which it comes is finished and saved, also where it is the last one."""
    whole = Counter()
    fit(whole, LastCheckpoint(tmp_path / "whole.ckpt", every_n_steps=100), steps=6)
    before = signal.getsignal(signal.SIGINT)
    callback = Recorder(tmp_path / "last.ckpt", every_n_steps=100)
    ended = (SystemExit, KeyboardInterrupt)
    with pytest.raises(ended):
        fit(Counter(signals={at: [sign]}), callback, steps=6)
    assert callback.saved == [at]
    assert signal.getsignal(signal.SIGINT) is before
    assert ("Ctrl-C again ends at once" in capfd.readouterr().err) == (sign == signal.SIGINT)
    resumed = Counter()
    fit(
        resumed,
        LastCheckpoint(tmp_path / "end.ckpt", every_n_steps=100),
        steps=6,
        ckpt_path=callback.path,
    )
    assert int(resumed.iteration) == 6
    assert torch.equal(resumed.weights[0], whole.weights[0])


def test_the_second_interrupt_ends_in_the_middle_of_a_step(tmp_path: Path) -> None:
    callback = Recorder(tmp_path / "last.ckpt", every_n_steps=2)
    with pytest.raises(SystemExit):
        fit(Counter(signals={3: [signal.SIGINT] * 2}), callback, steps=6)
    assert callback.saved == [2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_rank_zero_decides_when_all_end(tmp_path: Path) -> None:
    class Strategy:
        def broadcast(self, own: tuple[bool, bool]) -> tuple[bool, bool]:
            return False, True

    class SecondRank:
        world_size, strategy = 2, Strategy()

    callback = LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=100)
    assert callback._agreed(SecondRank()) == (False, True)  # type: ignore[arg-type]


def test_an_interrupt_that_somebody_else_handles_is_left_to_them() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption().awaited():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with ThreadPoolExecutor() as pool:
            pool.submit(lambda: Interruption().awaited().__enter__()).result()
    finally:
        signal.signal(signal.SIGINT, before)
