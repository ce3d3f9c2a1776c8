"""Progress of a run, stage by stage: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text
from torch import Tensor

if TYPE_CHECKING:
    from hast_lightning.core.batch import Progress as StageProgress
    from hast_lightning.training.module import ZeroShotQuantization

REFRESH_SECONDS = 0.125
"""Time between two refreshes of the bars: often enough for the eye, too rare to cost speed."""
LINE_SECONDS = 30.0
LINES_PER_STAGE = 10
COLUMNS = 80
"""Of a line, where nothing tells how wide the place is."""
GAP = "  "
"""Between the parts of a line; also how far a line that goes on is indented."""


@dataclass(frozen=True)
class Snapshot:
    """What is shown of a stage at one moment.

    Attributes:
        progress: Stage, steps done and steps in all.
        scalars: Current losses by short name.
        rate: Steps per second, or none after a single step.
        elapsed: Seconds since the stage began (or since the resume).
    """

    progress: StageProgress
    scalars: Mapping[str, float]
    rate: float | None
    elapsed: float

    @property
    def pace(self) -> str:
        """Return the speed in the unit that reads best."""
        if not self.rate:
            return ""
        if self.rate < 1:
            return f"{1 / self.rate:.1f} s/step"
        return f"{self.rate:.{0 if self.rate >= 100 else 1}f} steps/s"

    @property
    def clock(self) -> str:
        """Return the time elapsed and left."""
        elapsed = _duration(self.elapsed)
        steps_left = self.progress.total - self.progress.step
        if not self.rate or not steps_left:
            return elapsed
        return f"{elapsed}, {_duration(steps_left / self.rate)} left"

    @property
    def losses(self) -> list[str]:
        """Return each scalar as name and value."""
        return [f"{name} {value:.4g}" for name, value in self.scalars.items()]


class Display(Protocol):
    """Where progress is shown."""

    def due(self, progress: StageProgress, now: float) -> bool:
        """Return whether this step is worth showing; ``now`` in seconds. Must be cheap."""
        ...

    def show(self, snapshot: Snapshot) -> None:
        """Show the state of a stage."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was; may be called twice."""
        ...


class BarDisplay:
    """One bar per stage, dim until it starts, and the current losses below them.

    There is no refresh thread: bars move when a step ends.
    """

    def __init__(self, console: Console, stage_totals: Mapping[str, int]) -> None:
        """Start drawing the bars of ``stage_totals``, the steps of each stage in order."""
        # The numbers in columns of their own, so that the bars have one length.
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}", justify="right"),
            TextColumn("{task.fields[pace]}", justify="right"),
            TextColumn("{task.fields[clock]}"),
            console=console,
            auto_refresh=False,
            expand=True,
        )
        self._tasks = {
            stage: self._bars.add_task(
                f"[dim]{stage}[/]", total=total, count=f"[dim]{total}[/]", pace="", clock=""
            )
            for stage, total in stage_totals.items()
        }
        self._losses = Text(no_wrap=True, overflow="ellipsis", style="dim")
        self._shown_at = float("-inf")
        self._live = Live(Group(self._bars, self._losses), console=console, auto_refresh=False)
        self._live.start(refresh=True)

    def due(self, progress: StageProgress, now: float) -> bool:
        """Return true every ``REFRESH_SECONDS``, and when a stage ends."""
        if now - self._shown_at < REFRESH_SECONDS and progress.step < progress.total:
            return False
        self._shown_at = now
        return True

    def show(self, snapshot: Snapshot) -> None:
        """Move the bar of the stage; the stages before it are over."""
        stage, step, total = snapshot.progress
        self._complete_before(stage)
        self._bars.update(
            self._tasks[stage],
            description=stage if step == total else f"[bold]{stage}[/]",
            completed=step,
            count=f"{step}/{total}",
            pace=snapshot.pace,
            clock=snapshot.clock,
        )
        self._losses.plain = GAP.join(snapshot.losses)
        self._live.refresh()

    def _complete_before(self, stage: str) -> None:
        """Fill the bars of stages that ended before a resume and were never shown."""
        for earlier, task in self._tasks.items():
            if earlier == stage:
                return
            if not self._bars.tasks[task].finished:
                total = self._bars.tasks[task].total
                self._bars.update(task, description=earlier, completed=total, clock="done before")

    def close(self) -> None:
        """Stop drawing and show the cursor again."""
        self._live.stop()


class LineDisplay:
    """Plain lines for logs: at the start and end of a stage, every tenth and every 30 seconds."""

    def __init__(self, console: Console, stage_totals: Mapping[str, int]) -> None:
        """Write the stages and their steps as the first line."""
        self._file = console.file
        self._stage = ""
        self._shown_at = 0.0
        self._part = 0
        stages = [f"{stage} ({total} steps)" for stage, total in stage_totals.items()]
        self._print("stages:", *(f"{stage}," for stage in stages[:-1]), *stages[-1:], gap=" ")

    def due(self, progress: StageProgress, now: float) -> bool:
        """Return whether a line is due."""
        stage, step, total = progress
        part = LINES_PER_STAGE * step // total
        if stage == self._stage and part == self._part and now - self._shown_at < LINE_SECONDS:
            return False
        self._stage, self._part, self._shown_at = stage, part, now
        return True

    def show(self, snapshot: Snapshot) -> None:
        """Write one line, or several where the losses do not fit on it."""
        stage, step, total = snapshot.progress
        count = f"{stage} {step}/{total} ({100 * step // total}%)"
        parts = (count, snapshot.pace, snapshot.clock, *snapshot.losses)
        self._print(*(part for part in parts if part))

    def _print(self, *parts: str, gap: str = GAP) -> None:
        # Flushed: through a pipe or into a file it would otherwise arrive in blocks.
        print(*filled(parts, gap), sep="\n", file=self._file, flush=True)

    def close(self) -> None:
        """Nothing to restore."""


class StageProgressBar(Callback):
    """Shows the stages of a run with their losses, speed, time elapsed and time left.

    Works on rank zero only. Losses are read from the device only when they are shown.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Show progress on ``console``; none: standard output, found when training starts."""
        super().__init__()
        self._console = console
        self._display: Display | None = None
        self._stage = ""
        self._began = self._last_end = self._first_end = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Declare all stages."""
        if not trainer.is_global_zero:
            return
        console = self._console or Console()
        display = BarDisplay if console.is_interactive else LineDisplay
        self._display = display(console, cast("ZeroShotQuantization", pl_module).agenda.stages)
        self._stage = ""
        self._last_end = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Show the step that was just done, if it is time."""
        if self._display is None:
            return
        progress = cast("StageProgress", pl_module.progress)
        now = time.perf_counter()
        if progress.stage != self._stage:
            self._stage, self._began = progress.stage, self._last_end
            self._first_step, self._first_end = progress.step, now
        self._last_end = now
        if self._display.due(progress, now):
            scalars = cast("ZeroShotQuantization", pl_module).outcome.scalars
            self._display.show(self._snapshot(progress, scalars, now))

    def _snapshot(
        self, progress: StageProgress, scalars: Mapping[str, float | Tensor], now: float
    ) -> Snapshot:
        # Speed is counted from the end of the first step, which may compile and allocate.
        steps, seconds = progress.step - self._first_step, now - self._first_end
        rate = steps / seconds if steps and seconds > 0 else None
        losses = short_scalars(scalars)
        return Snapshot(progress, losses, rate, now - self._began)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the display."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restore the terminal, whatever happened."""
        self._close()

    def _close(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.close()


def filled(parts: Iterable[str], gap: str) -> list[str]:
    """Return lines of at most ``COLUMNS`` columns, broken between parts; the later are indented."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(gap) + len(part) <= COLUMNS:
            lines[-1] += gap + part
        else:
            lines.append(GAP + part if lines else part)
    return lines


def short_scalars(scalars: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Return the scalars of a step as numbers; the group is left out where the name is unique.

    Args:
        scalars: By ``group/name``.
    """
    short = [name.rpartition("/")[2] for name in scalars]
    return {
        last if short.count(last) == 1 else name: _number(value)
        for (name, value), last in zip(scalars.items(), short, strict=True)
    }


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _duration(seconds: float) -> str:
    """Return hours, minutes and seconds; also of days, which would not fit on a line otherwise."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
