"""What a run is called and what is said of it where many runs are shown together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hast_lightning.config import Config

MAX_TAG = 64
"""Characters of a tag that wandb takes."""


@dataclass(frozen=True)
class Description:
    """How a run is found again among others.

    Attributes:
        name: Of this run.
        group: Runs of one group are shown together.
        tags: What to filter by.
        settings: The resolved configuration, with ablation switches and origin.
    """

    name: str
    group: str
    tags: tuple[str, ...]
    settings: dict[str, Any]


def describe(
    config: Config, folder: Path, origin: Mapping[str, Any], teacher_checksum: str
) -> Description:
    """Describe a run.

    Args:
        config: Its configuration.
        folder: Its folder, which gives it the second half of its name.
        origin: ``command``, ``git_commit`` and ``versions`` that the run is made by.
        teacher_checksum: SHA-256 of the full-precision network's weights.
    """
    facts = {
        "ablation": ablation(config),
        "git_commit": origin["git_commit"],
        "command_line": origin["command"],
        "versions": dict(origin["versions"]),
        "teacher_checksum": teacher_checksum,
        "folder": str(folder),
    }
    return Description(
        name=config.logger.run_name or f"{config.recipe}/{folder.name}",
        group=config.logger.group or config.recipe,
        tags=_tags(config),
        settings={**asdict(config), **facts},
    )


def ablation(config: Config) -> dict[str, bool]:
    """The switches of the paper's ablation (HAST, Li et al., CVPR 2023, table 4)."""
    alignment = config.distillation.alignment
    return {
        "hard_sample_synthesis": config.synthesis.hardness.enabled,
        "sample_difficulty_promotion": config.distillation.promotion.enabled,
        "feature_alignment": alignment.enabled and alignment.weight > 0,
    }


def _tags(config: Config) -> tuple[str, ...]:
    """The user's own first; then what one usually filters by."""
    quantizer = config.quantizer
    found = (
        *config.logger.tags,
        config.recipe,
        config.model.name,
        f"W{quantizer.weight_bits}A{quantizer.activation_bits}",
        quantizer.name,
    )
    return tuple(dict.fromkeys(tag[:MAX_TAG] for tag in found if tag))
