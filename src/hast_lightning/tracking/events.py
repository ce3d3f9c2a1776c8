"""TensorBoard's event files of a run that is taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hast_lightning.tracking.axes import STUDENT_AXIS, axis_of, axis_values
from hast_lightning.training.agenda import Agenda

PATTERN = "events.out.tfevents.*"


def keep_events(folder: Path, agenda: Agenda, done: int) -> None:
    """Leave in ``folder`` what was logged of the first ``done`` iterations, and nothing else.

    The steps after the checkpoint are done again and would be drawn twice. TensorBoard's own
    ``purge_step`` is one number for all curves, where here every group has its own counter.

    Args:
        folder: Of the event files; it need not exist.
        agenda: Says how many steps of each kind an iteration has behind it.
        done: Iterations of the checkpoint.
    """
    files = sorted(folder.glob(PATTERN))
    if not files:
        return
    kept = [event for file in files for event in _events(file) if _is_done(event, agenda, done)]
    if kept:  # first, so that a kill on the way loses nothing
        _write(folder, kept)
    for file in files:
        file.unlink()


def _events(file: Path) -> list[Any]:
    """Return all whole events; a killed process may have left half of one."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return list(LegacyEventFileLoader(str(file)).Load())


def _is_done(event: Any, agenda: Agenda, done: int) -> bool:
    """Return whether an event belongs to a step that is not done again; one without values not."""
    names = [value.tag for value in event.summary.value]
    if not done or not names:
        return False
    if not agenda.calibrated(done) and any(axis_of(name) == STUDENT_AXIS for name in names):
        return False  # its first place is that of the step that freezes the ranges
    places = axis_values(agenda, names, done - 1)
    return all(event.step <= places[axis_of(name)] for name in names)


def _write(folder: Path, events: list[Any]) -> None:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for event in events:
        writer.add_event(event)
    writer.close()
