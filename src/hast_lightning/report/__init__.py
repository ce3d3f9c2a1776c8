"""``report.html``: a run on one page that needs nothing else."""

from hast_lightning.report.page import write_failed_report, write_report

__all__ = ["write_failed_report", "write_report"]
