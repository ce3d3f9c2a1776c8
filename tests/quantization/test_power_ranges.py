"""Ranges by a power of the error: against every candidate, and step sizes that learn."""

from __future__ import annotations

import pytest
import torch

from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.fake_quant import ActivationQuantizer
from hast_lightning.quantization.learned import LearnedActivationQuantizer
from hast_lightning.quantization.power_ranges import PowerRanges
from hast_lightning.quantization.ranges import Grid
from hast_lightning.quantization.search import least_squares
from hast_lightning.quantization.settings import QuantizerConfig


@pytest.mark.parametrize("power", [1.0, 2.4, 4.0])
def test_no_candidate_has_a_smaller_error(power: float) -> None:
    torch.manual_seed(0)
    rows, grid = torch.randn(3, 200).pow(3), Grid(4)
    ranges = PowerRanges(power=power, candidates=20)
    low, high = ranges.find(rows, grid)

    def errors(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        scale = (high - low) / 15
        zero = torch.round(-low / scale)
        rounded = scale * ((rows / scale).round() + zero).clamp(0, 15) - scale * zero
        return (rounded - rows).abs().pow(power).sum(1)

    best = errors(low, high)
    lowest, highest = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    for i in range(20):
        factor = 1 - i / 20
        assert (best <= errors(factor * lowest, factor * highest) * (1 + 1e-4)).all()


def test_the_square_is_least_squares() -> None:
    rows, grid = torch.randn(4, 100), Grid(3)
    found = PowerRanges(power=2.0, candidates=10).find(rows, grid)
    factors = [1 - i / 10 for i in range(10)]
    assert all(map(torch.equal, found, least_squares(rows, grid, factors)))


def test_a_higher_power_cuts_less_off() -> None:
    rows = torch.randn(1, 5000).pow(3)
    widths = [float(PowerRanges(power=p).find(rows, Grid(4))[1]) for p in (1.0, 2.4, 6.0)]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_the_negative_part_of_silu_has_a_zero_point_of_its_own() -> None:
    values = torch.nn.functional.silu(torch.linspace(-8, 8, 4001)).view(1, -1)
    low, high = PowerRanges().find(values, Grid(8))
    assert -0.29 < float(low) < -0.2 and 7 < float(high) <= 8
    assert float(Grid(8).parameters(low, high).zero_point) > 0


def test_step_sizes_of_activations_learn_where_they_are_to() -> None:
    settings = QuantizerConfig(4, ranges=PowerRanges())
    made = settings.ranges.activation_quantizer(4, settings)
    assert isinstance(made, LearnedActivationQuantizer)
    plain = PowerRanges(learned=False).activation_quantizer(4, settings)
    assert type(plain) is ActivationQuantizer


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"power": 0.0}, {"candidates": 0}):
        with pytest.raises(ConfigurationError):
            PowerRanges(**wrong)  # type: ignore[arg-type]
