"""Ranges of generators: where a power of the error is least, with step sizes that may learn."""

from __future__ import annotations

from torch import Tensor

from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.quantization.axes import QuantizerSettings, Ranges
from hast_lightning.quantization.fake_quant import ActivationQuantizer
from hast_lightning.quantization.learned import LearnedActivationQuantizer
from hast_lightning.quantization.ranges import Grid
from hast_lightning.quantization.search import least_squares


@part("ranges", "power")
class PowerRanges(Ranges):
    """Ranges where the sum of ``|error|^power`` is least; step sizes of activations may learn.

    Weights and activations are asymmetric: the negative part of SiLU and GELU reaches to -0.28 and
    -0.17 alone. Source: the observers of BRECQ, Q-Diffusion and EDA-DM (Liu et al., arXiv
    2401.04585), whose step sizes learn while units are rebuilt.
    """

    power: float = 2.4
    """Of the error; 2: least squares."""
    candidates: int = 100
    """Ranges that are tried, evenly from the whole one down."""
    learned: bool = True
    """Step sizes of activations are parameters, which a stage may train."""

    def __post_init__(self) -> None:
        require_range("power", self.power, 0, 16, open_minimum=True)
        require_range("candidates", self.candidates, 1, 10_000)

    def find(self, rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the best of shrunken ranges of each row."""
        factors = [1 - i / self.candidates for i in range(self.candidates)]
        return least_squares(rows, grid, factors, self.power)

    def activation_quantizer(self, bits: int, settings: QuantizerSettings) -> ActivationQuantizer:
        """Return a quantizer whose step size may learn."""
        if not self.learned:
            return super().activation_quantizer(bits, settings)
        return self._as_set(LearnedActivationQuantizer, bits, settings)
