"""Reading back what wandb wrote offline: a log of records in LevelDB's format.

wandb has no reader in Python any more. A file is a header of 7 bytes and blocks of 32 KiB;
a block is a sequence of fragments, each with a checksum (4 bytes), a length (2) and a type (1):
whole, first, middle or last. Put together, each is one protocol buffer of wandb's own schema.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BLOCK, HEADER = 32768, 7
PATIENCE_SECONDS = 60.0
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@contextmanager
def offline(folder: Path) -> Iterator[None]:
    """wandb without a network, which keeps what it stages in ``folder`` and out of the home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("CACHE", "DATA", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / name.lower()))
        yield


@dataclass
class WandbRun:
    """What one offline run holds."""

    folder: Path
    identifier: str = ""
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    """Step metric by metric, or by pattern of metrics."""
    artifacts: list[Any] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def series(self, name: str, axis: str) -> list[tuple[float, float]]:
        """Values of a metric over one of its axes."""
        return [(row[axis], row[name]) for row in self.history if name in row]


def read_wandb_run(folder: Path) -> WandbRun:
    """The only offline run of a run folder, once it is all there."""
    (run,) = read_wandb_runs(folder)
    return run


def read_wandb_runs(folder: Path) -> list[WandbRun]:
    """What every attempt of the run in ``folder`` left, the first one first.

    Attempts at one wandb run are files of one name in folders that begin with the time.
    """
    return [_read(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _read(path: Path) -> WandbRun:
    """wandb's own process writes the end of a file a moment after the run was finished."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while True:
        run = WandbRun(path.parent)
        for record in _records(path):
            _take_in(run, record)
        if run.exit_code is not None or time.monotonic() > patience:
            return run
        time.sleep(0.1)


def _take_in(run: WandbRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    content = getattr(record, kind) if kind else None
    if kind == "run":
        run.identifier, run.name, run.group = (
            content.run_id,
            content.display_name,
            content.run_group,
        )
        run.tags = list(content.tags)
        run.config.update(_items(content.config.update))
    elif kind == "config":
        run.config.update(_items(content.update))
    elif kind == "history":
        run.history.append(_items(content.item))
    elif kind == "metric":
        run.axes[content.name or content.glob_name] = content.step_metric
    elif kind == "artifact":
        run.artifacts.append(content)
    elif kind == "summary":
        run.summary.update(_items(content.update))
    elif kind == "exit":
        run.exit_code = content.exit_code


def _items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    parts = b""
    for kind, data in _fragments(path.read_bytes()):
        parts = data if kind in (WHOLE, FIRST) else parts + data
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def _fragments(content: bytes) -> Iterator[tuple[int, bytes]]:
    assert content.startswith(b":W&B"), content[:HEADER]
    position = HEADER
    while position + HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # what is left of a block is filled with zeros
            position += left
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        data = content[position + HEADER : position + HEADER + length]
        if len(data) < length:  # not all written yet
            return
        checksum = int.from_bytes(content[position : position + 4], "little")
        assert zlib.crc32(bytes([kind]) + data) == checksum, f"damaged at byte {position}"
        yield kind, data
        position += HEADER + length
