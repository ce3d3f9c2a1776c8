"""Groups of weights that share a range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.adaround import Adaptive
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import WeightQuantizer, quantized_layers
from hast_lightning.quantization.learned import LSQ
from hast_lightning.quantization.ranges import Grid, group_ranges, spread_groups
from hast_lightning.quantization.search import LeastSquares
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig
from hast_lightning.quantization.size import float_bytes, quantized_bytes


@pytest.mark.parametrize("size", [3, 4, 5, 20])
def test_each_group_has_the_range_of_its_own_weights(size: int) -> None:
    weight = torch.randn(5, 10)
    low, high = group_ranges(weight, size, Grid(8))
    for number, group in enumerate(torch.split(weight, size, dim=1)):
        assert torch.equal(low[:, number], group.amin(1))
        assert torch.equal(high[:, number], group.amax(1))
    spread = spread_groups(low, size, 10)
    assert torch.equal(spread[:, 9], low[:, -1])
    assert spread.shape == weight.shape


@pytest.mark.parametrize("axis", ["minmax", "mse"])
def test_groups_are_rounded_as_layers_of_that_width(axis: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 12)
    options = QuantizerConfig(bits=3, **({"ranges": LeastSquares()} if axis == "mse" else {}))  # type: ignore[arg-type]
    grouped = QuantizerConfig(bits=3, ranges=options.ranges, group_size=4)
    quantizers = [o.ranges.weight_quantizer(3, weight, o) for o in (grouped, options)]
    parts = [quantizers[1].rounded(part) for part in torch.split(weight, 4, dim=1)]
    assert torch.allclose(quantizers[0].rounded(weight), torch.cat(parts, dim=1), atol=1e-6)


def test_convolutions_have_one_range_a_channel() -> None:
    options = QuantizerConfig(bits=3, group_size=4)
    found: list[WeightQuantizer] = [
        options.ranges.weight_quantizer(3, weight, options)
        for weight in (torch.randn(6, 12), torch.randn(6, 12, 3, 3))
    ]
    assert [q.group_size for q in found] == [4, None]


def test_what_learns_one_scale_a_channel_is_refused() -> None:
    for axes in ({"ranges": LSQ()}, {"rounding": Adaptive()}):
        with pytest.raises(ConfigurationError, match=r"group_size=4 with (ranges|rounding)@"):
            QuantizerConfig(bits=3, group_size=4, **axes)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="group_size=1 must"):
        QuantizerConfig(bits=3, group_size=1)
    with pytest.raises(ConfigurationError, match="group_size=4 with weight_bits=1"):
        QuantizerConfig(weight_bits=1, group_size=4)
    with pytest.raises(ConfigurationError, match="group_size=4 with weight_bits=1"):
        QuantizerConfig(group_size=4, overrides=[LayerBits("out", weight_bits=1)])


class Tied(nn.Module):
    """An embedding whose table is the output layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.out = nn.Linear(12, 20, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.out(torch.relu(self.table(tokens)))
        return found


def test_an_embedding_stays_in_floating_point_beside_the_layer_that_shares_its_weights() -> None:
    network = Tied().eval()
    student = convert(network, QuantizerConfig(weight_bits=2, activation_bits=None))
    (_, layer), *_ = quantized_layers(student)
    table = student.get_submodule("table")
    assert isinstance(table, nn.Embedding)
    assert torch.equal(table.weight, network.table.weight)
    assert torch.equal(layer.weight, network.table.weight)
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(table.weight, network.table.weight)
    assert network.out.weight is network.table.weight


def test_the_size_counts_every_group_and_the_table_that_stays() -> None:
    network = Tied().eval()
    for group_size, ranges in ((None, 20), (5, 60)):
        options = QuantizerConfig(weight_bits=4, activation_bits=None, group_size=group_size)
        student = convert(network, options)
        found = quantized_bytes(student, float_bytes(network))
        assert found == 4 * 240 + 240 // 2 + 5 * ranges
