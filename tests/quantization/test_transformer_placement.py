"""What is quantized of a vision transformer, and where: operands of products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from hast_lightning.errors import ConfigurationError
from hast_lightning.graph.attention_nodes import find_attentions
from hast_lightning.graph.operations import layer_of
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.correction import correct_biases
from hast_lightning.quantization.equalization import equalized
from hast_lightning.quantization.fake_quant import (
    ActivationQuantizer,
    activation_quantizers,
    recalibrate,
)
from hast_lightning.quantization.log2 import Log2Quantizer, log2_quantize
from hast_lightning.quantization.norm_factors import find_norm_pairs, norm_widths
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.quantization.transformer_placement import PSAQ, Transformer
from tests.transformers import graph, images, network, pretrained


def student_of(placement: Transformer, bits: int = 8, norm_first: bool = True) -> fx.GraphModule:
    torch.manual_seed(0)
    student = convert(network(norm_first), QuantizerConfig(bits, placement=placement))
    recalibrate(student, [images(16)])
    return student


def rounded(student: fx.GraphModule) -> dict[str, list[str]]:
    """The quantized values, and the nodes that take them in."""
    return {
        node.all_input_nodes[0].name: [user.name for user in node.users]
        for node in student.graph.nodes
        if isinstance(layer_of(node, student), ActivationQuantizer)
    }


@pytest.mark.parametrize("norm_first", [True, False])
def test_every_operand_of_a_product_is_rounded(norm_first: bool) -> None:
    student = student_of(Transformer(), norm_first=norm_first)
    for node in student.graph.nodes:
        if node.target is torch.matmul or isinstance(layer_of(node, student), nn.Linear):
            operands = node.all_input_nodes
            assert all(isinstance(layer_of(n, student), ActivationQuantizer) for n in operands)
    picture = next(iter(student.graph.nodes))
    assert picture.name not in rounded(student)
    assert picture.name in rounded(student_of(Transformer(picture=True)))


def test_residual_sums_take_in_what_was_not_rounded() -> None:
    """Behind a post-norm LayerNorm a value goes both ways."""
    student = student_of(Transformer(), norm_first=False)
    (taker,) = rounded(student)["encoder_layers_0_norm1"]
    assert taker == "encoder_layers_0_linear1"
    norm = next(n for n in student.graph.nodes if n.name == "encoder_layers_0_norm1")
    assert any(user.name.startswith("add") for user in norm.users)
    sums = student_of(Transformer(sums=True), norm_first=False)
    assert any(value.startswith("add") for value in rounded(sums))


def test_settings_decide_about_softmax_and_scores() -> None:
    attention = find_attentions(graph())[0]
    kinds = {}
    for probabilities in ("log2", "uniform", "float"):
        student = student_of(Transformer(probabilities=probabilities))
        found = rounded(student)
        kinds[probabilities] = attention.probabilities in found
        logs = [q for q in activation_quantizers(student) if isinstance(q, Log2Quantizer)]
        assert len(logs) == (2 if probabilities == "log2" else 0)
    assert kinds == {"log2": True, "uniform": True, "float": False}
    more = set(rounded(student_of(Transformer(scores=True)))) - set(
        rounded(student_of(Transformer()))
    )
    assert len(more) == 2
    with pytest.raises(ConfigurationError, match="probabilities"):
        Transformer(probabilities="log")


def test_psaq_is_symmetric_and_leaves_the_softmax() -> None:
    student = student_of(PSAQ())
    assert find_attentions(graph())[0].probabilities not in rounded(student)
    layer = student.get_submodule("head")
    _, zero_point = layer.weight_quantizer.parameters_of(layer.weight)  # type: ignore[union-attr,operator]
    assert (zero_point == 128).all()
    assert {"x", "images"} & set(rounded(student))


@pytest.mark.parametrize("norm_first", [True, False])
def test_more_bits_come_closer(norm_first: bool) -> None:
    expected = network(norm_first)(images(16))
    errors = []
    for bits in (2, 4, 8):
        student = student_of(Transformer(probabilities="uniform"), bits, norm_first)
        errors.append(float((student(images(16)) - expected).detach().norm() / expected.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


def test_powers_of_two() -> None:
    powers = torch.exp2(-torch.arange(16.0))
    torch.testing.assert_close(log2_quantize(powers, 4), powers, atol=0, rtol=0)
    small = torch.tensor([0.0, 2.0**-16, 2.0**-17])
    assert log2_quantize(small, 4).tolist() == [0, 0, 0]
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)).clamp_min(1e-4)
    ratio = log2_quantize(values, 8) / values
    assert ratio.min() > 0.5**0.5 - 1e-4
    assert ratio.max() < 2**0.5 + 1e-4
    assert log2_quantize(torch.tensor([1.0, 1.5]), 2).tolist() == [1, 1]


def test_powers_of_two_pass_gradients_and_need_no_range() -> None:
    quantizer = Log2Quantizer(3)
    x = torch.rand(5, requires_grad=True)
    assert quantizer(x) is x
    recalibrate(nn.Sequential(quantizer), [torch.rand(4)])
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1] * 5
    assert quantizer.scale.isfinite()


@pytest.mark.parametrize("norm_first", [True, False])
def test_factors_of_layer_norms_leave_the_answers(norm_first: bool) -> None:
    found = equalized(pretrained(norm_first), per_tensor=False).network
    expected = network(norm_first)(images())
    torch.testing.assert_close(found(images()), expected, atol=2e-5, rtol=1e-5)
    layer = found.get_submodule("encoder.layers.1.linear1")
    own = network(norm_first).get_submodule("encoder.layers.1.linear1")
    assert not torch.equal(layer.weight, own.weight)  # type: ignore[arg-type]
    divided = [n for n in found.graph.nodes if "divided" in n.name]
    # A post-norm output also goes into the residual sum, but for the first layer's input.
    assert len(divided) == (0 if norm_first else 3)


def test_factors_make_channels_as_wide_as_their_columns() -> None:
    network_ = equalized(pretrained(), per_tensor=False).network
    from hast_lightning.graph.tracing import trace

    traced = trace(network_)
    for pair in find_norm_pairs(traced):
        (taker,) = pair.takers
        norm, layer = (layer_of(node, traced) for node in (pair.node, taker))
        assert isinstance(norm, nn.LayerNorm)
        columns: Tensor = layer.weight.abs().amax(0)  # type: ignore[union-attr,operator,assignment]
        torch.testing.assert_close(norm_widths(norm), columns, atol=1e-4, rtol=1e-4)


def test_biases_of_linear_layers_are_corrected_over_tokens() -> None:
    student = student_of(Transformer(), 3)
    expected = network()(images(16))
    before = (student(images(16)) - expected).mean(0).norm()
    assert correct_biases(student, graph(), images(16)) == 10
    after = (student(images(16)) - expected).mean(0).norm()
    assert after < 0.05 * before


def test_attention_in_floating_point_is_said(caplog: pytest.LogCaptureFixture) -> None:
    convert(network(), QuantizerConfig(4))
    assert "stays in floating point" in caplog.text
    caplog.clear()
    convert(network(), QuantizerConfig(4, placement=Transformer()))
    assert not caplog.text


class Masked(nn.Module):
    """Scores of single patches, of which none sees what comes later."""

    def __init__(self, fills: bool) -> None:
        super().__init__()
        self.fills = fills
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("mask", torch.full((20, 20), torch.finfo(torch.float32).min).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1) * 0.3
        mask = self.mask[:16, :16]
        scores = scores.masked_fill(mask < 0, -1e30) if self.fills else scores + mask
        found: Tensor = scores.softmax(-1) @ self.v(x)
        return found


@pytest.mark.parametrize("fills", [False, True])
def test_scores_are_rounded_before_they_are_masked(fills: bool) -> None:
    """The range of a mask would leave one number for all scores, or none."""
    torch.manual_seed(0)
    network_, x = Masked(fills).eval(), torch.randn(4, 16, 8)
    student = convert(network_, QuantizerConfig(8, placement=PSAQ()))
    assert not [n for n in rounded(student) if n.startswith(("add", "masked"))]
    recalibrate(student, [x])
    error = (student(x) - network_(x)).detach().square().mean() / network_(x).var()
    assert float(error) < 0.01
    assert max(float(q.scale) for q in activation_quantizers(student)) < 1


class Written(nn.Module):
    """Two heads of attention, whose products are written in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        q, k, v = (
            layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        if self.way == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k)
            attended = torch.einsum("bhjd,bhij->bhid", v, (scores * 0.5).softmax(-1))
        elif self.way == "baddbmm":
            q, k, v = (each.flatten(0, 1) for each in (q, k, v))
            scores = torch.baddbmm(q[:, :, :1] * 0, q, k.transpose(1, 2))
            attended = torch.bmm((scores * 0.5).softmax(-1), v).unflatten(0, (-1, 2))
        else:
            attended = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v
        found: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return found


@pytest.mark.parametrize("way", ["matmul", "einsum", "baddbmm"])
def test_products_are_quantized_however_they_are_written(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network_, x = Written(way).eval(), torch.randn(4, 16, 8)
    student = convert(network_, QuantizerConfig(8, placement=Transformer()))
    # What enters the three layers, three of their outputs, the probabilities, and the last layer.
    assert len(activation_quantizers(student)) == 6
    assert sum(isinstance(q, Log2Quantizer) for q in activation_quantizers(student)) == 1
    recalibrate(student, [x])
    error = (student(x) - network_(x)).detach().square().mean() / network_(x).var()
    assert float(error) < 0.01
    convert(network_, QuantizerConfig(8))
    assert "stays in floating point" in caplog.text


def test_einsum_of_one_tensor_is_no_product() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(x) + torch.einsum("nij->ni", self.first(x))[..., None]
            return found

    student = convert(Summed().eval(), QuantizerConfig(8, placement=Transformer(picture=True)))
    assert len(activation_quantizers(student)) == 1
