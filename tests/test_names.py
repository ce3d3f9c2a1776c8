"""A layer has one name in all places, and that is its name in ``named_modules()``."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from hast_lightning import QuantizedModel, inspect
from hast_lightning.records.folder import METRICS_FILE, REPORT_FILE
from hast_lightning.runs import pipeline
from tests.command_line import undisturbed_torch
from tests.small_calls import digits_network
from tests.small_runs import small
from tests.wandb_files import WandbRun, read_wandb_run

BLOCKS = "distillation/alignment/"
ERRORS, LOW, HIGH = (
    f"quantization/{name}/" for name in ("weight_error", "activation_low", "activation_high")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run that leaves a report, a packed file, and what wandb keeps offline."""
    folder = tmp_path_factory.mktemp("names") / "run"
    words = ("logger.name=wandb", "callbacks.media_every_n_steps=3", "trainer.log_every_n_steps=1")
    with pytest.MonkeyPatch.context() as patch, undisturbed_torch():
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        assert pipeline.run(small(*words, "export.formats=[packed]"), folder, "typed") is not None
    yield folder


def behind(names: Iterator[str], prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def wandb_table(logged: WandbRun) -> set[str]:
    path = next(row[key] for row in logged.history if (key := "quantization/layers/path") in row)
    return {row[0] for row in json.loads((logged.folder / "files" / path).read_text())["data"]}


def test_all_say_the_names_of_the_modules(folder: Path) -> None:
    network = digits_network()
    modules = dict(network.named_modules())
    layers = {n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear)}
    activations = {n for n, m in modules.items() if isinstance(m, nn.ReLU)}

    seen = inspect("digits", 3)
    assert set(seen.bits) == layers
    assert set(seen.activation_bits) == activations
    assert {call.name for call in seen.calls} <= modules.keys()

    loaded = QuantizedModel.load(folder)
    assert set(loaded.bits) == layers
    assert set(loaded.activation_bits) == activations

    page = (folder / REPORT_FILE).read_text(encoding="utf-8")
    rows = re.findall(r'<tr><th scope="row">([\w.]+)</th><td class="num">3</td>', page)
    assert set(rows) == layers | activations

    with (folder / METRICS_FILE).open() as file:
        columns = csv.DictReader(file).fieldnames or []
    assert behind(iter(columns), BLOCKS) == set(seen.taps) <= modules.keys()

    logged = read_wandb_run(folder)
    names = {name for row in logged.history for name in row}
    assert behind(iter(names), BLOCKS) == set(seen.taps)
    assert behind(iter(names), ERRORS) == layers
    assert behind(iter(names), LOW) == behind(iter(names), HIGH) == activations
    assert wandb_table(logged) == layers | activations


@pytest.mark.parametrize("name", ["synthesis/bns", "distillation/kd"])
def test_the_iteration_is_the_one_counter_of_the_file_and_of_wandb(folder: Path, name: str) -> None:
    with (folder / METRICS_FILE).open() as file:
        rows = [row for row in csv.DictReader(file) if row[name]]
    in_file = [(int(row["step"]), pytest.approx(float(row[name]))) for row in rows]
    assert in_file == read_wandb_run(folder).series(name, "iteration")
    assert in_file


class Twice(nn.Module):
    """An activation and a layer that are called twice, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4))

    def forward(self, x):  # type: ignore[no-untyped-def]
        first = self.block(x)
        return self.head(self.block(first) + first)


def test_a_second_call_has_a_number_and_a_function_the_name_of_its_node() -> None:
    options = {"input_shape": (1, 8, 8), "mean": [0.5], "std": [0.5]}
    words = {"method": "without_training", "schedule": "demo", "overrides": "quantizer=deploy"}
    found = inspect(Twice(), **words, **options)
    assert list(found.bits) == ["block.0", "head.2"]
    assert list(found.activation_bits) == ["x", "block.2", "block.2-2", "add", "head.0"]
