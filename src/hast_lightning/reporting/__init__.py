"""What a run leaves behind: its result file, its table and its grid of synthetic images."""

from hast_lightning.reporting.grid import save_grid
from hast_lightning.reporting.result import Result
from hast_lightning.reporting.table import results_table

__all__ = ["Result", "results_table", "save_grid"]
