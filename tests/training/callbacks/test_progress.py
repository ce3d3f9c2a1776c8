from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from hast_lightning.core.batch import Progress
from hast_lightning.core.stage import Outcome
from hast_lightning.training.agenda import Agenda, Leg
from hast_lightning.training.callbacks import progress as progress_module
from hast_lightning.training.callbacks.progress import (
    BarDisplay,
    LineDisplay,
    Snapshot,
    StageProgressBar,
    short_scalars,
)

TOTALS = {"synthesis": 30, "distillation": 20}
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


class Staged(LightningModule):
    """Steps of a fixed duration on the given clock; counts how often its outcome is read."""

    agenda = Agenda(tuple(Leg(stage, total) for stage, total in TOTALS.items()))

    def __init__(self, clock: Clock, seconds: float, fail_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clock, self.seconds, self.fail_at = clock, seconds, fail_at
        self.progress = Progress("synthesis", 0, 30)
        self.reads = 0

    @property
    def outcome(self) -> Outcome:
        self.reads += 1
        if self.progress.stage == "synthesis":
            return Outcome({"synthesis/bns": torch.tensor(0.5)})
        return Outcome({"distillation/kd": 0.25 * self.weight + 1.25})

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        done = int(batch) + 1
        if done == self.fail_at:
            raise RuntimeError("step failed")
        in_synthesis = done <= TOTALS["synthesis"]
        stage, step = ("synthesis", done) if in_synthesis else ("distillation", done - 30)
        self.progress = Progress(stage, step, TOTALS[stage])
        self.clock.now += self.seconds

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_console(terminal: bool) -> Console:
    # Also says it is interactive: environments of automatic tests may say otherwise.
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        force_interactive=terminal,
        width=100,
        legacy_windows=False,
    )


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def fit(module: Staged, console: Console, start: int = 0) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        callbacks=[StageProgressBar(console)],
    )
    trainer.fit(module, DataLoader(range(start, 50), batch_size=None))  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def last_frame(console: Console) -> list[str]:
    """What is left on the terminal when the display has closed."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output(console)).replace("\r", "\n")
    return [line.rstrip() for line in plain.splitlines() if line.strip()][-len(TOTALS) - 1 :]


def test_bars_show_every_stage_and_the_current_losses(clock: Clock) -> None:
    console = make_console(terminal=True)
    fit(Staged(clock, seconds=0.5), console)
    synthesis, distillation, losses = last_frame(console)
    assert synthesis.startswith("synthesis ")
    assert "30/30" in synthesis
    assert "2.0 steps/s" in synthesis
    assert synthesis.endswith("0:00:15")
    assert distillation.startswith("distillation ")
    assert "20/20" in distillation
    assert distillation.endswith("0:00:10")
    assert losses.strip() == "kd 1.25"


def test_all_bars_are_declared_before_the_first_step(clock: Clock) -> None:
    console = make_console(terminal=True)
    with pytest.raises(RuntimeError, match="step failed"):
        fit(Staged(clock, 0.5, fail_at=1), console)
    assert "synthesis" in output(console)
    assert "distillation" in output(console)
    assert "1/30" not in output(console)


def test_refreshes_and_reads_losses_at_most_eight_times_a_second(clock: Clock) -> None:
    module = Staged(clock, seconds=0.01)
    fit(module, make_console(terminal=True))
    # Half a second in all: one at once, one each eighth of a second, one at each end of a stage.
    assert 4 <= module.reads <= 7


def test_terminal_is_restored_after_an_exception(clock: Clock) -> None:
    console = make_console(terminal=True)
    with pytest.raises(RuntimeError, match="step failed"):
        fit(Staged(clock, 0.5, fail_at=4), console)
    text = output(console)
    assert HIDE_CURSOR in text
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    # Another display can open: rich allows one at a time.
    fit(Staged(clock, 0.5), console)
    assert "20/20" in output(console)


def test_stages_done_before_a_resume_are_shown_as_done(clock: Clock) -> None:
    console = make_console(terminal=True)
    fit(Staged(clock, seconds=0.5), console, start=40)
    synthesis, distillation, _ = last_frame(console)
    assert "done before" in synthesis
    # Ten steps in this run, although the stage has twenty.
    assert "2.0 steps/s" in distillation
    assert distillation.endswith("0:00:05")


def test_lines_where_there_is_no_terminal(clock: Clock) -> None:
    console = make_console(terminal=False)
    fit(Staged(clock, seconds=0.5), console)
    lines = output(console).splitlines()
    assert "\x1b" not in output(console)
    assert lines[0] == "stages: synthesis (30 steps), distillation (20 steps)"
    assert lines[1] == "synthesis 1/30 (3%)  0:00:00  bns 0.5"
    # Each tenth of 30 steps, after the first step.
    assert [line.split()[1] for line in lines[1:12]] == [
        "1/30",
        *(f"{n}/30" for n in range(3, 31, 3)),
    ]
    assert "synthesis 12/30 (40%)  2.0 steps/s  0:00:06, 0:00:09 left  bns 0.5" in lines
    assert lines[-1] == "distillation 20/20 (100%)  2.0 steps/s  0:00:10  kd 1.25"


def test_slow_steps_get_a_line_every_thirty_seconds(clock: Clock) -> None:
    console = make_console(terminal=False)
    fit(Staged(clock, seconds=16), console)
    steps = [line.split()[1] for line in output(console).splitlines()[1:6]]
    # The first; tenths at 3 and 6; 5 as 32 seconds have passed since 3.
    assert steps == ["1/30", "3/30", "5/30", "6/30", "8/30"]


def test_lines_are_flushed(clock: Clock) -> None:
    class Pipe(io.StringIO):
        unflushed = 0

        def write(self, text: str) -> int:
            self.unflushed += 1
            return super().write(text)

        def flush(self) -> None:
            self.unflushed = 0

    pipe = Pipe()
    fit(Staged(clock, seconds=0.5), Console(file=pipe, force_terminal=False))
    assert "distillation 20/20" in pipe.getvalue()
    assert pipe.unflushed == 0


def test_other_ranks_are_silent(clock: Clock) -> None:
    class SecondRank:
        is_global_zero = False

    console, module = make_console(terminal=False), Staged(clock, 0.5)
    bar = StageProgressBar(console)
    bar.on_train_start(SecondRank(), module)  # type: ignore[arg-type]
    module.progress = Progress("synthesis", 30, 30)
    bar.on_train_batch_end(SecondRank(), module, None, None, 0)  # type: ignore[arg-type]
    bar.on_train_end(SecondRank(), module)  # type: ignore[arg-type]
    assert output(console) == ""
    assert module.reads == 0


@pytest.mark.parametrize(
    ("rate", "pace"),
    [(None, ""), (123.4, "123 steps/s"), (12.34, "12.3 steps/s"), (0.4, "2.5 s/step")],
)
def test_pace_in_the_unit_that_reads_best(rate: float | None, pace: str) -> None:
    assert Snapshot(Progress("synthesis", 1, 2), {}, rate, 0.0).pace == pace


def test_names_are_short_and_values_plain_numbers() -> None:
    scalars = {"synthesis/bns": torch.tensor(2.0, requires_grad=True), "distillation/kd": 0.5}
    assert short_scalars(scalars) == {"bns": 2.0, "kd": 0.5}


def test_names_that_two_groups_share_keep_their_group() -> None:
    scalars = {"synthesis/loss": 1.0, "distillation/loss": 2.0, "distillation/kd": 3.0}
    assert short_scalars(scalars) == {
        "synthesis/loss": 1.0,
        "distillation/loss": 2.0,
        "kd": 3.0,
    }


def test_lines_of_many_losses_are_broken_between_them_at_80_columns() -> None:
    totals = {f"a_rather_long_name_{number}": 10**7 for number in range(4)}
    console = make_console(terminal=False)
    display = LineDisplay(console, totals)
    scalars = {f"loss_of_term_{number}": number / 7 for number in range(9)}
    progress = Progress("a_rather_long_name_0", 10**6, 10**7)
    display.show(Snapshot(progress, scalars, 12.3, 3600.0))
    lines = output(console).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    text = " ".join(line.strip() for line in lines)
    assert all(f"{stage} (10000000 steps)" in text for stage in totals)
    assert all(f"{name} {value:.4g}" in text for name, value in scalars.items())
    begun = [line for line in lines if not line.startswith("  ")]
    assert [line.split()[0] for line in begun] == ["stages:", "a_rather_long_name_0"]


def test_bars_fit_on_80_columns() -> None:
    console = make_console(terminal=True)
    console.width = 80
    totals = {"synthesis": 4_000_000, "reconstruction": 20_000}
    display = BarDisplay(console, totals)
    scalars = {f"loss_of_term_{number}": number / 7 for number in range(9)}
    progress = Progress("synthesis", 1_234_567, 4_000_000)
    display.show(Snapshot(progress, scalars, 12.3, 360_000.0))
    display.close()
    synthesis, _, losses = last_frame(console)
    assert len(synthesis) <= 80 and len(losses) <= 80
    assert "1234567/4000000" in synthesis and "12.3 steps/s" in synthesis
    assert "left" in synthesis and losses.endswith("…")
