"""Attention written out: the outputs of fused code, in layers and products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.errors import ModelError
from hast_lightning.graph.attention import additive, write_out_modules
from hast_lightning.graph.attention_nodes import find_attentions
from hast_lightning.graph.tracing import trace
from hast_lightning.graph.units import find_units
from hast_lightning.models.preparation import prepare
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.quantization.transformer_placement import Transformer
from tests.transformers import SHAPE, TinyViT, graph, images

FUSED = (F.scaled_dot_product_attention, F.multi_head_attention_forward)
CLOSE = 1e-5


def require_written(network: nn.Module, shape: tuple[int, int, int], blocks: int) -> nn.Module:
    """The prepared network answers as its own code does, and no fused step is left in it."""
    network.eval()
    prepared, _ = prepare(network, shape, "any")
    found = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(prepared(found), network(found), atol=CLOSE, rtol=0)
    assert isinstance(prepared, fx.GraphModule)
    assert not [node for node in prepared.graph.nodes if node.target in FUSED]
    assert not [m for m in prepared.modules() if isinstance(m, nn.MultiheadAttention)]
    assert len(find_attentions(prepared)) == blocks
    return prepared


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_of_torch(norm_first: bool, batch_first: bool) -> None:
    network = TinyViT(norm_first, batch_first)
    prepared = require_written(network, SHAPE, 2)
    names = dict(prepared.named_parameters())
    # The fused weights are those of one linear layer.
    own = network.encoder.layers[0].self_attn.in_proj_weight
    torch.testing.assert_close(names["encoder.layers.0.self_attn.in_proj.weight"], own)
    convert(prepared, QuantizerConfig(8, placement=Transformer()))


class Attending(nn.Module):
    """Pixels as tokens into one attention, however it is called."""

    def __init__(self, attend: Callable[[nn.Module, Tensor], Tensor], **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Conv2d(1, 8, 1), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)  # type: ignore[arg-type]
        self._attend = attend
        self.register_buffer("hidden", torch.ones(16, 16, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self._attend(self, tokens)).mean(1)


def masked(network: nn.Module, x: Tensor) -> Tensor:
    return network.attention(x, x, x, attn_mask=network.hidden)[0]  # type: ignore[operator,no-any-return]


def crossed(network: nn.Module, x: Tensor) -> Tensor:
    return network.attention(x.relu(), x, x * 2, need_weights=False)[0]  # type: ignore[operator,no-any-return]


def weighed(network: nn.Module, x: Tensor) -> Tensor:
    output, weights = network.attention(x, x, x)  # type: ignore[operator]
    return output + weights.mean(-1, keepdim=True)  # type: ignore[no-any-return]


def functional(network: nn.Module, x: Tensor) -> Tensor:
    heads = x.unflatten(-1, (2, 4)).transpose(1, 2)  # type: ignore[no-untyped-call]
    # True marks what counts here, and what is left out in MultiheadAttention.
    mask = torch.logical_not(network.hidden)  # type: ignore[arg-type]
    one = F.scaled_dot_product_attention(heads, heads.relu(), heads, attn_mask=mask)
    other = F.scaled_dot_product_attention(heads, heads, heads * 2, is_causal=True, scale=0.3)
    return (one + other).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("attend", "options", "blocks"),
    [
        (masked, {}, 1),
        (masked, {"bias": False}, 1),
        (crossed, {}, 1),
        (crossed, {"kdim": 8, "vdim": 8}, 1),
        (weighed, {}, 1),
        (functional, {}, 2),
    ],
)
def test_one_attention(
    attend: Callable[[nn.Module, Tensor], Tensor], options: dict[str, object], blocks: int
) -> None:
    prepared = require_written(Attending(attend, **options), (1, 4, 4), blocks)
    convert(prepared, QuantizerConfig(8, placement=Transformer()))


def test_separate_projections() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.keys = nn.Conv2d(1, 8, 1), nn.Conv2d(1, 6, 1)
            self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            queries, keys = (e(x).flatten(2).transpose(1, 2) for e in (self.embed, self.keys))
            return self.head(self.attention(queries, keys, keys, need_weights=False)[0]).mean(1)

    require_written(Two(), (1, 4, 4), 1)


def test_masks_are_finite_and_mean_what_they_meant() -> None:
    counts = torch.tensor([[True, False]])
    for mask in (additive(counts, true_counts=True), additive(~counts, true_counts=False)):
        assert mask.isfinite().all()
        assert torch.softmax(torch.tensor([[-3.0, 50.0]]) + mask, -1).tolist() == [[1, 0]]
    given = torch.tensor([[0.5, float("-inf")]])
    assert additive(given, true_counts=True).isfinite().all()


@pytest.mark.parametrize("lowest", [float("-inf"), -2.0])
def test_masks_of_numbers_that_a_function_adds_are_finite(lowest: float) -> None:
    def added(network: nn.Module, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)  # type: ignore[no-untyped-call]
        attended = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=network.added)  # type: ignore[arg-type]
        return attended.transpose(1, 2).flatten(2)

    network = Attending(added)
    mask = torch.full((16, 16), lowest).triu(1)
    network.register_buffer("added", mask, persistent=False)
    prepared = require_written(network, (1, 4, 4), 1)
    constants = [n for n in prepared.graph.nodes if n.op == "get_attr"]  # type: ignore[union-attr]
    (found,) = (getattr(prepared, str(node.target)) for node in constants)
    assert torch.equal(found, mask.clamp_min(torch.finfo(torch.float32).min))


def test_what_cannot_be_written_out_is_refused() -> None:
    with pytest.raises(ModelError, match="add_bias_kv"):
        write_out_modules(nn.Sequential(nn.MultiheadAttention(4, 2, add_bias_kv=True)))
    decoder = nn.Sequential(nn.TransformerDecoderLayer(4, 2)).eval()
    with pytest.raises(ModelError, match="TransformerDecoderLayer, which cannot be quantized"):
        convert(decoder, QuantizerConfig(8, placement=Transformer()))

    def padded(network: nn.Module, x: Tensor) -> Tensor:
        padding = torch.zeros(2, 16, dtype=torch.bool)
        return network.attention(x, x, x, key_padding_mask=padding)[0]  # type: ignore[operator,no-any-return]

    with pytest.raises(ModelError, match="key_padding_mask"):
        prepare(Attending(padded).eval(), (1, 4, 4), "any")


def test_attention_and_mlp_are_units() -> None:
    for norm_first in (True, False):
        units = [unit.layers for unit in find_units(graph(norm_first))]
        assert units[1:-1] == [
            (f"encoder.layers.{i}.{a}", f"encoder.layers.{i}.{b}")
            for i in range(2)
            for a, b in (("self_attn.in_proj", "self_attn.out_proj"), ("linear1", "linear2"))
        ]


def test_nodes_of_attention_have_the_values_that_they_are_called_by() -> None:
    traced = graph()
    (first, _) = find_attentions(traced)
    seen: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                seen[n.name] = value
            return value

    Watch(traced).run(images())
    probabilities = torch.softmax(seen[first.scores] / 8**0.5, -1)
    torch.testing.assert_close(seen[first.probabilities], probabilities)
    assert seen[first.output].shape == (4, 2, 17, 8)


@pytest.mark.parametrize("second", [False, True])
def test_windows_of_torchvision(second: bool) -> None:
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    options = {}
    if second:
        options = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    torch.manual_seed(0)
    network = swin.SwinTransformer(
        [2, 2], 8, [2, 2], [2, 2], [3, 3], num_classes=4, stochastic_depth_prob=0.0, **options
    )
    for name, parameter in network.named_parameters():
        if "relative" in name or "bias" in name:
            nn.init.normal_(parameter)
    # 9 tokens to a side are whole windows; 8 are padded, and 4 make an odd 2.
    for size in (18, 16):
        prepared = require_written(network, (3, size, size), 4)
        assert not [n for n in prepared.graph.nodes if "shifted" in str(n.target)]
    convert(prepared, QuantizerConfig(8, placement=Transformer()))


def test_a_vision_transformer_of_torchvision() -> None:
    models = pytest.importorskip("torchvision.models")
    network = models.VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=3)
    nn.init.normal_(network.heads.head.weight)
    require_written(network, (3, 16, 16), 2)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_transformers_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    prepared = require_written(timm.create_model(name, num_classes=3, **small), (3, 16, 16), 2)
    # timm's own LayerNorm is that of torch, with factors to fold into.
    assert any(isinstance(m, nn.LayerNorm) for m in trace(prepared).modules())


def test_windows_of_timm() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model(
        "swin_tiny_patch4_window7_224",
        **{"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (2, 2)},
        **{"num_heads": (2, 2), "num_classes": 3},
    )
    require_written(network, (3, 32, 32), 4)
