"""What stages have in common that use the samples of a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from hast_lightning.core.stage import Bench, Stage
from hast_lightning.errors import ConfigurationError


@dataclass(eq=False, repr=False, kw_only=True)
class ReadingStage(Stage):
    """Base class: a stage that uses the samples of one source.

    Attributes:
        batch_key: The setting that says how many samples are used together.
    """

    batch_key: ClassVar[str] = "batch_size"

    source: str = MISSING
    """Name of the source whose samples are used."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the name of the source."""
        return (self.source,)

    def memory_key(self, bench: Bench) -> tuple[str, int]:
        """Return the setting of the samples that are used together, and how many they are."""
        if not hasattr(self, self.batch_key):
            return super().memory_key(bench)
        return f"{self.key}.{self.batch_key}", getattr(self, self.batch_key)


def require_source(bench: Bench, name: str, key: str) -> None:
    """Refuse the name of a source that there is not.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in bench.sources:
        raise ConfigurationError(
            f"{key}.source={name} is no source; there are: {', '.join(bench.sources) or 'none'}"
        )


def samples_there(bench: Bench, name: str, wanted: int) -> int:
    """Return how many of the wanted samples a source has to train on."""
    most = bench.sources[name].most
    return wanted if most is None else min(wanted, most)


def require_batch(
    bench: Bench, name: str, samples: int, batch_size: int, key: str, views: int = 1
) -> None:
    """Refuse fewer samples than a batch has.

    Raises:
        ConfigurationError: the source has too few, or too few are asked for.
    """
    there = samples_there(bench, name, samples)
    if there * views < batch_size:
        of = f", as many as {name} has" if there < samples else ""
        times = f" in views={views}" if views > 1 else ""
        raise ConfigurationError(
            f"{key}.batch_size={batch_size}: a batch has more than the {there} samples{times} "
            f"that there are{of}: lower it"
        )


def require_calibrated(bench: Bench, name: str, does: str) -> None:
    """Refuse a student that no stage calibrates.

    Args:
        bench: Of the run.
        name: The stage.
        does: What it does to the student.

    Raises:
        ConfigurationError: ranges are not frozen yet.
    """
    if not bench.ranges_frozen:
        raise ConfigurationError(
            f"order: {name} {does} the student, which no stage before it calibrates"
        )
