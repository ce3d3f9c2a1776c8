"""The keys of ``command=compare``."""

from __future__ import annotations

from dataclasses import dataclass, field

from hast_lightning.core.checks import require_choice

TABLE_FORMATS = ("markdown", "csv", "latex", "html")
PICTURE_FORMATS = ("png", "svg")


@dataclass
class CompareConfig:
    """Where a comparison goes and in which formats."""

    folder: str = "comparison"
    """Folder that tables and plots are written to."""
    formats: list[str] = field(default_factory=lambda: list(TABLE_FORMATS))
    """Formats of the table."""
    plots: list[str] = field(default_factory=lambda: list(PICTURE_FORMATS))
    """Formats of the plots; none: no plots, which need matplotlib."""
    published: bool = True
    """Published numbers of the same networks beside ours."""

    def __post_init__(self) -> None:
        for name in self.formats:
            require_choice("compare.formats", name, TABLE_FORMATS)
        for name in self.plots:
            require_choice("compare.plots", name, PICTURE_FORMATS)
