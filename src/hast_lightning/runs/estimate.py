"""``command=estimate``: what a run would cost on this machine, from a few steps of each stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

from lightning.pytorch import LightningModule
from rich import box
from rich.console import Console
from rich.table import Table

from hast_lightning.config import Config
from hast_lightning.models.zoo import load_all
from hast_lightning.records.folder import CHECKPOINT_FILE, Origin, disk_bytes
from hast_lightning.records.printing import as_it_is, plain_console
from hast_lightning.records.results_table import readable_size
from hast_lightning.records.versions import device_name, peak_memory_bytes, versions
from hast_lightning.runs.assembly import build, prepare_torch
from hast_lightning.runs.pipeline import fit
from hast_lightning.runs.sources import build_sources
from hast_lightning.runtime.trainer import require_device
from hast_lightning.tracking.facts import running_stages
from hast_lightning.training.bench import PreparedBench
from hast_lightning.training.callbacks.timing import StageTimer
from hast_lightning.training.module import ZeroShotQuantization

FEW_STEPS = 3
"""Steps of a stage that are timed, at least."""
COUNTS, LENGTHS = ("batch_size", "samples"), ("steps", "iterations")
"""What stages call the samples that they need, and their steps."""


def few_steps(config: Config) -> list[str]:
    """Return the words that leave a run a few steps of each stage, each as large as before."""
    images, batch = config.schedule.images, config.schedule.image_batch
    stages = dict(running_stages(config))
    words, batches = [], 1
    if batch is not None:
        # A stage is refused fewer images than its batch has, and keeps something of each sample.
        wanted = (getattr(each, key, 0) for each in stages.values() for key in COUNTS)
        batches = max(1, math.ceil(max(wanted, default=0) / (1 - config.data.holdout) / batch))
        batches = batches if images is None else min(batches, math.ceil(images / batch))
        words = [f"schedule.images={batches * batch}"]
    steps = ("generator_steps", "calibration_steps", "student_steps", "unit_steps")
    # The first step of a batch of images is another than those behind it.
    of_images = max(2, math.ceil(FEW_STEPS / batches))
    return [
        *words,
        f"schedule.image_steps={of_images}",
        *(f"schedule.{name}={FEW_STEPS}" for name in steps),
        # What is not of the budget.
        *(
            f"stages.{place}.{key}={FEW_STEPS}"
            for place, stage in stages.items()
            for key in LENGTHS
            if (getattr(stage, key, None) or 0) > FEW_STEPS
        ),
        *(
            f"sources.{name}.iterations={of_images}"
            for name, source in config.sources.items()
            if hasattr(source, "iterations")
        ),
        *("logger=csv", "callbacks.progress=false", "evaluate=false", "export=none"),
    ]


class Timed(NamedTuple):
    """One step.

    Attributes:
        seconds: That it took.
        begins: It is the first of its stage, or of a layer or unit: what is prepared once counts.
    """

    seconds: float
    begins: bool


class StepTimer(StageTimer):
    """Keeps the time of every step.

    Attributes:
        steps: By name of stage, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[Timed]] = {}
        self._begins = True

    def _charge(self, stage: str, seconds: float, pl_module: LightningModule) -> None:
        super()._charge(stage, seconds, pl_module)
        begins = self._begins or stage not in self.steps
        self.steps.setdefault(stage, []).append(Timed(seconds, begins))
        self._begins = cast("ZeroShotQuantization", pl_module).outcome.milestone


def whole(timed: Sequence[Timed], steps: int) -> float:
    """Return the seconds of a stage of ``steps``, by those of a few.

    What is prepared in the first step of a layer or unit is not done more often where the layer
    or unit has more steps.
    """
    steady = [each.seconds for each in timed if not each.begins]
    if not steady or steps <= len(timed):
        return sum(each.seconds for each in timed) / len(timed) * steps
    usual = sum(steady) / len(steady)
    return usual * steps + sum(max(each.seconds - usual, 0) for each in timed if each.begins)


class Cost(NamedTuple):
    """What a run costs.

    Attributes:
        seconds: Of each stage, in order.
        steps: Of each stage.
        memory: Peak, in bytes; none: the system does not tell.
        disk: Of the run folder, in bytes.
    """

    seconds: dict[str, float]
    steps: dict[str, int]
    memory: int | None
    disk: int


def estimate(config: Config, small: Config, console: Console | None = None) -> Cost:
    """Time a few steps of each stage, and print what the whole run would take.

    Args:
        config: The run, checked.
        small: The same with the words of :func:`few_steps`.
        console: Where to print; none: standard output.

    Raises:
        UserError: a run would be refused.
    """
    prepare_torch(small)
    require_device(small.trainer)
    pretrained = load_all(config.model, config.teachers)
    bench = PreparedBench(config, pretrained, build_sources(config, pretrained))
    with TemporaryDirectory() as place:
        folder = Path(place)
        run = build(small, folder, Origin("", None, versions()))
        timer = StepTimer()
        fit(run, [], [timer], None)
        device, memory = device_name(run.module.device), peak_memory_bytes(run.module.device)
        disk = disk_bytes(folder) or 0
        checkpoints = len(list(folder.glob(f"{Path(CHECKPOINT_FILE).stem}*")))
        grown = _bytes(bench) - _bytes(run.module)
        disk += grown * max(checkpoints, config.callbacks.checkpoints_kept)
    steps = dict(bench.agenda.stages)
    seconds = {s: whole(timer.steps[s], count) for s, count in steps.items() if s in timer.steps}
    cost = Cost(seconds, steps, None if memory is None else memory + max(grown, 0), disk)
    (console or plain_console()).print(cost_table(config.recipe, device, cost))
    return cost


def _bytes(module: PreparedBench) -> int:
    """Return the size of what a checkpoint holds: student and sources."""
    held = [*module.student.state_dict().values()]
    for source in module.sources.values():
        held += source.state_dict().values()
    return sum(value.numel() * value.element_size() for value in held if hasattr(value, "numel"))


def cost_table(recipe: str, device: str, cost: Cost) -> Table:
    """Return a row for each stage, and one for all."""
    table = Table(
        title=as_it_is(f"{recipe} on {device}", "table.title"),
        caption=f"from {FEW_STEPS} steps or more of each stage; measuring and files not counted",
        box=box.SIMPLE_HEAVY,
    )
    table.add_column("stage", no_wrap=True)
    for name in ("steps", "a step", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage, seconds in cost.seconds.items():
        steps = cost.steps[stage]
        one = f"{1000 * seconds / max(steps, 1):,.0f} ms"
        table.add_row(stage, f"{steps:,}", one, readable_time(seconds))
    total = sum(cost.seconds.values())
    table.add_row("all", f"{sum(cost.steps.values()):,}", "", readable_time(total), style="bold")
    memory = "not told" if cost.memory is None else readable_size(cost.memory)
    table.add_row("memory", "", "", memory)
    table.add_row("disk", "", "", readable_size(cost.disk))
    return table


def readable_time(seconds: float) -> str:
    """Return seconds, minutes, hours or days, with two digits that count."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
