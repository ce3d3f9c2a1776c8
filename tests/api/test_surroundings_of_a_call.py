"""What a call may bring of its own: a device, callbacks, loggers, and a module of data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from hast_lightning import quantize
from hast_lightning.api.surroundings import undisturbed_process
from hast_lightning.errors import ConfigurationError, DataError
from tests.small_calls import INPUT, SHORT, digits_network


class Counter(Callback):
    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.batches += 1


class Pictures(LightningDataModule):
    """Eight images for validation, or for tests."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.asked = kind, list[str]()

    def setup(self, stage: str) -> None:
        self.asked.append(stage)

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(8, 1, 8, 8), torch.arange(8)), batch_size=4)

    def val_dataloader(self) -> Any:
        return self._loader() if self.kind == "validation" else super().val_dataloader()

    def test_dataloader(self) -> Any:
        return self._loader() if self.kind == "tests" else super().test_dataloader()


def call(**arguments: Any) -> Any:
    return quantize(digits_network(), bits=4, method="hast", overrides=SHORT, **INPUT, **arguments)


def test_callbacks_and_loggers_are_told_of_every_step(tmp_path: Path) -> None:
    counter, logger = Counter(), CSVLogger(tmp_path, name="", version="")
    call(callbacks=[counter], logger=logger, device="cpu")
    assert counter.batches == 6 + 2 + 3
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) > 6


@pytest.mark.parametrize("kind", ["validation", "tests"])
def test_a_module_of_data_is_measured_on(kind: str) -> None:
    data = Pictures(kind)
    assert call(data=data).result.evaluated_images == 8
    assert data.asked[0] == "validate"


def test_a_module_without_such_data_is_refused() -> None:
    with pytest.raises(DataError, match="without data for validation or tests"):
        call(data=Pictures("training"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device": "gpux"}, "is no device"),
        ({"device": "cuda:3"}, "CUDA_VISIBLE_DEVICES=3"),
        ({"callbacks": [3]}, r"callbacks\.0 is of type int"),
        ({"logger": [Counter()]}, r"logger\.0 is of type Counter"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        call(**arguments)


def test_what_lightning_sets_for_the_process_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with undisturbed_process():
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_call_in_a_later_process_of_a_program_writes_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    call(folder=tmp_path / "run")
    for name in ("config.yaml", "origin.json", "metrics.csv", "result.json"):
        assert (tmp_path / "run" / name).is_file() or name == "result.json"
    assert rank_zero_only.rank == 1  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="already holds a run"):
        call(folder=tmp_path / "run")
