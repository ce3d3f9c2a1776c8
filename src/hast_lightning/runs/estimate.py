"""``command=estimate``: what a run would cost on this machine, from a few steps of each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from hast_lightning.config import Config
from hast_lightning.models.zoo import load_all
from hast_lightning.records.folder import CHECKPOINT_FILE, Origin, disk_bytes
from hast_lightning.records.results_table import readable_size
from hast_lightning.records.versions import device_name, peak_memory_bytes, versions
from hast_lightning.runs.assembly import build, prepare_torch
from hast_lightning.runs.pipeline import fit
from hast_lightning.runs.sources import build_sources
from hast_lightning.runtime.trainer import require_device
from hast_lightning.training.bench import PreparedBench
from hast_lightning.training.callbacks.timing import StageTimer

FEW_STEPS = 3
"""Steps of a stage that are timed, at least."""


def few_steps(config: Config) -> list[str]:
    """Return the words that leave a run a few steps of each stage, each as large as before."""
    batch = config.schedule.image_batch
    words = [f"schedule.images={batch}"] if batch is not None else []
    steps = ("image_steps", "generator_steps", "calibration_steps", "student_steps", "unit_steps")
    return [
        *words,
        *(f"schedule.{name}={FEW_STEPS}" for name in steps),
        *("logger=csv", "callbacks.progress=false", "evaluate=false", "export=none"),
    ]


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
        timer = StageTimer()
        fit(run, [], [timer], None)
        measured = run.module.agenda.stages
        device, memory = device_name(run.module.device), peak_memory_bytes(run.module.device)
        disk = disk_bytes(folder) or 0
        checkpoints = len(list(folder.glob(f"{Path(CHECKPOINT_FILE).stem}*")))
        grown = _bytes(bench) - _bytes(run.module)
        disk += grown * max(checkpoints, config.callbacks.checkpoints_kept)
    steps = dict(bench.agenda.stages)
    seconds = {
        stage: timer.seconds[stage] / measured[stage] * count
        for stage, count in steps.items()
        if stage in measured
    }
    cost = Cost(seconds, steps, None if memory is None else memory + max(grown, 0), disk)
    (console or Console()).print(cost_table(config.recipe, device, cost))
    return cost


def _bytes(module: PreparedBench) -> int:
    """Return the size of what a checkpoint holds: student and sources."""
    held = (*module.student.state_dict().values(), *_of_sources(module.sources))
    return sum(value.numel() * value.element_size() for value in held if hasattr(value, "numel"))


def _of_sources(sources: Mapping[str, object]) -> Iterator[object]:
    for source in sources.values():
        yield from source.state_dict().values()  # type: ignore[attr-defined]


def cost_table(recipe: str, device: str, cost: Cost) -> Table:
    """Return a row for each stage, and one for all."""
    table = Table(
        title=f"{recipe} on {device}",
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
