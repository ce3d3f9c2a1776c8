"""Lightning's loggers, with every group of metrics on its own axis, and with media."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from hast_lightning.quantization.diagnosis import ACTIVATION, WEIGHT, LayerDiagnosis
from hast_lightning.tracking.axes import ITERATION, axes, axis_of, axis_values
from hast_lightning.tracking.events import keep_events
from hast_lightning.tracking.media import (
    HISTOGRAM_BINS,
    LAYER_COLUMNS,
    Media,
    layer_markdown,
    layer_rows,
    layer_scalars,
    mean_scalars,
)
from hast_lightning.training.agenda import Agenda

EDGES = np.linspace(0, 1, HISTOGRAM_BINS + 1)


class StageWandbLogger(WandbLogger):
    """A wandb run whose charts have the step counter of their own group as axis.

    Lightning's own logger draws everything over ``trainer/global_step``.

    Args:
        run: The wandb run, which is open already.
        folder: The run folder.
        agenda: Says how many steps of each kind an iteration has behind it.
    """

    def __init__(self, run: Any, folder: Path, agenda: Agenda) -> None:
        super().__init__(experiment=run, save_dir=folder)
        self._agenda = agenda
        run.define_metric(ITERATION, hidden=True)
        of_groups = axes(agenda)
        for axis in sorted(set(of_groups.values())):
            run.define_metric(axis, hidden=True)
        for group, axis in of_groups.items():
            run.define_metric(f"{group}/*", step_metric=axis)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log at iteration ``step`` (from 0), beside its position on every axis."""
        assert step is not None
        positions = {ITERATION: step, **axis_values(self._agenda, metrics, step)}
        self.experiment.log({**metrics, **positions})

    @rank_zero_only
    def log_media(self, media: Media, iteration: int) -> None:
        """Show pictures, histograms, and layers as curves; at the ends of stages as tables, too."""
        import wandb

        shown: dict[str, Any] = {
            name: wandb.Image(picture) for name, picture in media.pictures.items()
        }
        for name, values in media.histograms.items():
            counted = np.histogram(_numbers(values), bins=EDGES)
            shown[name] = wandb.Histogram(np_histogram=counted)
        shown |= mean_scalars(media.histograms)
        if media.layers:
            shown |= layer_scalars(media.layers)
            # Each is an artifact of its own; the scalars tell what lies between.
            shown |= _layer_charts(media.layers) if media.ends_stage else {}
        self.log_metrics(shown, iteration)


def _layer_charts(layers: Sequence[LayerDiagnosis]) -> dict[str, Any]:
    """Return the layers as wandb's table, and as bars of what each kind is judged by."""
    import wandb

    table = wandb.Table(columns=list(LAYER_COLUMNS), data=layer_rows(layers))
    errors = [[layer.name, layer.error] for layer in layers if layer.kind == WEIGHT]
    widths = [
        [layer.name, layer.high - layer.low]
        for layer in layers
        if layer.kind == ACTIVATION and layer.low is not None and layer.high is not None
    ]
    return {
        "quantization/layers": table,
        "quantization/weight_errors": _bars(errors, "error", "Weight error by layer"),
        "quantization/activation_widths": _bars(widths, "width", "Activation range by layer"),
    }


def _bars(rows: list[list[Any]], value: str, title: str) -> Any:
    import wandb

    table = wandb.Table(columns=["layer", value], data=rows)
    return wandb.plot.bar(table, "layer", value, title=title)


class StageTensorBoardLogger(TensorBoardLogger):
    """TensorBoard's events, every group of metrics at the steps of its own counter.

    Args:
        folder: The run folder; the events go to ``tensorboard`` in it.
        agenda: Says how many steps of each kind an iteration has behind it.
        done: Iterations that a resumed run has behind it; what the events have of later ones,
            which are done again, is dropped.
    """

    def __init__(self, folder: Path, agenda: Agenda, done: int = 0) -> None:
        super().__init__(folder, name="", version="tensorboard")
        self._agenda = agenda
        if not getattr(rank_zero_only, "rank", 0):
            keep_events(folder / "tensorboard", agenda, done)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log at iteration ``step`` (from 0)."""
        assert step is not None
        for position, part in self._by_position(metrics, step):
            super().log_metrics(part, position)

    @rank_zero_only
    def log_media(self, media: Media, iteration: int) -> None:
        """Show pictures, histograms, and the layers as a table and as curves."""
        writer = self.experiment
        for position, pictures in self._by_position(media.pictures, iteration):
            for name, picture in pictures.items():
                writer.add_image(name, _pixels(picture), position, dataformats="HWC")
        for position, histograms in self._by_position(media.histograms, iteration):
            for name, values in histograms.items():
                writer.add_histogram(name, _numbers(values), position, bins=EDGES)
        self.log_metrics(mean_scalars(media.histograms), iteration)
        if media.layers:
            self.log_metrics(layer_scalars(media.layers), iteration)
            table = {"quantization/layers": layer_markdown(media.layers)}
            for position, texts in self._by_position(table, iteration):
                for name, text in texts.items():
                    writer.add_text(name, text, position)

    def _by_position(
        self, values: Mapping[str, Any], iteration: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the values that belong to one place of their axes, with that place."""
        positions = axis_values(self._agenda, values, iteration)
        parts: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, value in values.items():
            parts[positions[axis_of(name)]][name] = value
        yield from parts.items()


def _numbers(values: Tensor) -> Any:
    return values.detach().float().cpu().numpy()


def _pixels(picture: Image.Image) -> Any:
    return np.asarray(picture.convert("RGB"))
