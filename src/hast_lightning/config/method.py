"""The ``method`` group's own keys: what a method is called and where it is from."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from hast_lightning.core.checks import require_choice

CERTAINTIES = ("code", "paper", "summary", "ours")


@dataclass
class MethodConfig:
    """What a method is called and where it is from; its parts are in ``sources`` and ``stages``."""

    name: str = MISSING
    """What ``method=`` names."""
    title: str = ""
    """The name in full."""
    paper: str = ""
    """Authors, venue and identifier of the paper."""
    year: int = 0
    """Year of the paper."""
    certainty: str = "ours"
    """Where the formulas and constants are from: the authors' released ``code``, the ``paper``'s
    text, a ``summary`` by others, or ``ours`` in part, which is what is not said to be more."""

    def __post_init__(self) -> None:
        require_choice("method.certainty", self.certainty, CERTAINTIES)
