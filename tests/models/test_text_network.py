"""Networks of tokens as they are loaded, and those that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.graph.attention_nodes import find_attentions
from hast_lightning.graph.heads import head_of, restore_head
from hast_lightning.graph.tracing import trace
from hast_lightning.graph.units import extract, find_units
from hast_lightning.models.text_network import describe_text
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.quantization.transformer_placement import Transformer
from tests.tokens import LENGTH, VOCABULARY, config, loaded, network, texts


def test_the_graph_answers_as_the_network_does_with_the_classes_second() -> None:
    found, given = loaded(), texts(3)
    assert (found.input_shape, found.num_classes) == ((LENGTH,), VOCABULARY)
    expected = network()(given)
    torch.testing.assert_close(found.network(given), expected.transpose(1, 2))
    assert head_of(found.network) == "next_tokens"
    torch.testing.assert_close(restore_head(trace(found.network))(given), expected)


def test_units_are_the_halves_of_blocks_and_the_output() -> None:
    graph = trace(loaded().network)
    units = find_units(graph)
    assert [len(unit.layers) for unit in units] == [4, 3, 4, 3, 1]
    value: Tensor = texts(2)
    for unit in units:
        value = extract(graph, unit)(value)
    # The classes come second behind the last unit.
    torch.testing.assert_close(value.transpose(1, 2), graph(texts(2)))


class Ahead(nn.Module):
    """Sees the whole text."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 8), nn.Linear(8, 9)

    def forward(self, tokens: Tensor) -> Any:
        """Mix all tokens."""
        x = self.table(tokens)
        return self.out(x + x.mean(1, keepdim=True))


class Causal(Ahead):
    """Sees one token."""

    def forward(self, tokens: Tensor) -> Any:
        """Look at each token alone."""
        return self.out(self.table(tokens))


class WrongCache(Causal):
    """Forgets to count in its cache."""

    def decode(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Answer with something else."""
        return self.out(self.table(tokens) * 2), cache


class Attending(Causal):
    """Attends to tokens before, fused in one of several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.heads = kind, nn.Linear(8, 24)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Any:
        """Return logits of what is attended to."""
        x = self.table(tokens)
        if self.kind == "layer":
            return self.out(self.layer(x, src_mask=self.mask))
        if self.kind == "module":
            return self.out(self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0])
        q, k, v = self.heads(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(F.relu(attended.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kind", ["layer", "module", "function"])
def test_attention_is_written_out(kind: str) -> None:
    torch.manual_seed(0)
    own, given = Attending(kind).eval(), texts(3) % 9
    found = describe_text(own, config())
    with torch.no_grad():
        expected = own(given).transpose(1, 2)
        torch.testing.assert_close(found.network(given), expected, rtol=1e-4, atol=1e-5)
    assert len(find_attentions(trace(found.network))) == 1
    assert convert(found.network, QuantizerConfig(8, placement=Transformer()))


class Last(Causal):
    """Answers for the last token alone."""

    def forward(self, tokens: Tensor) -> Any:
        """Return (N, classes)."""
        return super().forward(tokens)[:, -1]


class Loud(Causal):
    """Adds chance."""

    def forward(self, tokens: Tensor) -> Any:
        """Return logits that differ each time."""
        logits = super().forward(tokens)
        return logits + torch.randn_like(logits)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Ahead(), "looks ahead"),
        (WrongCache(), "gives other logits by decode"),
        (Last(), r"returns \(2, 9\) for tokens of 2x16"),
        (Loud(), "looks ahead|in another way"),
        (nn.Linear(4, 4), "fails on tokens of 2x16"),
    ],
)
def test_what_is_no_causal_network_is_refused_in_one_line(made: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        describe_text(made, config())
    assert "\n" not in str(caught.value)


def test_the_vocabulary_is_checked() -> None:
    assert describe_text(Causal(), config(num_classes=9)).num_classes == 9
    with pytest.raises(ModelError, match="num_classes=5: the network tiny knows 9 tokens"):
        describe_text(Causal(), config(num_classes=5))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"input_size": "4x4"}, "one number of tokens"),
        ({"mean": [0.5], "std": [1.0]}, "ids are not normalized"),
        ({"class_names": ["a", "b"]}, "tokens have ids"),
    ],
)
def test_settings_of_pictures_are_refused(more: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config(**more)
