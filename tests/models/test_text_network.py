"""Networks of tokens as they are loaded, and those that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.graph.heads import head_of, restore_head
from hast_lightning.graph.tracing import trace
from hast_lightning.graph.units import extract, find_units
from hast_lightning.models.text_network import describe_text
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
