"""The entropy of similarities between patches: measured values, invariances, a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.term import Term
from hast_lightning.errors import ModelError
from hast_lightning.methods.mimiq import AttentionStructure, HeadSSIM
from hast_lightning.methods.psaq import PatchEntropy, kernel_entropy, patch_similarities
from hast_lightning.methods.sardfq import AttentionPrior
from hast_lightning.models.teacher import FrozenTeacher
from tests.transformers import images, teacher

CNN = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()


def entropy(output: torch.Tensor, **options: float) -> float:
    return float(kernel_entropy(patch_similarities(output), **options).mean())  # type: ignore[arg-type]


def test_the_entropy_is_that_of_a_plain_sum() -> None:
    values = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    low, high = float(values.min()), float(values.max())
    points = [low + (high - low) * i / 6 for i in range(7)]
    for row, found in zip(values.tolist(), kernel_entropy(values, 7, 0.05).tolist(), strict=True):
        heights = []
        for x in points:
            bells = [math.exp(-0.5 * ((x - v) / 0.05) ** 2) for v in row]
            p = sum(bells) / len(row) / (0.05 * math.sqrt(2 * math.pi)) + 1e-4
            heights.append(-p * math.log(p))
        step = (high - low) / 6
        expected = step * (sum(heights) - (heights[0] + heights[-1]) / 2)
        assert found == pytest.approx(expected, rel=1e-4)


def test_two_clusters_are_far_less_diverse_than_random_patches() -> None:
    torch.manual_seed(0)
    different = torch.randn(8, 1, 16, 16)
    centre = torch.randn(8, 1, 1, 16)
    clusters = torch.cat((centre, -centre), 2).repeat_interleave(8, 2)
    assert entropy(different) == pytest.approx(-0.34, abs=0.15)
    assert entropy(clusters) == pytest.approx(-12.5, abs=2)


def test_scale_and_class_token_do_not_matter() -> None:
    output = torch.randn(2, 3, 17, 8)
    similarities = patch_similarities(output)
    assert similarities.shape == (2, 16 * 16)
    torch.testing.assert_close(patch_similarities(7 * output), similarities)
    changed = output.clone()
    changed[:, :, 0] = 100
    torch.testing.assert_close(patch_similarities(changed), similarities)
    assert patch_similarities(output, self_pairs=False).shape == (2, 16 * 15)


def test_gradients_reach_the_pictures() -> None:
    network, inputs = teacher(), images().requires_grad_()
    term = PatchEntropy(points=100)
    needs = term.bind(network, network)
    trace = network.trace(inputs, needs.teacher)
    losses = term(Seen(Batch(inputs), trace, None, Progress("synthesis", 1, 1)))
    assert losses.shape == (2,)
    losses.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0


def test_a_network_without_attention_is_refused() -> None:
    network = FrozenTeacher(PretrainedNetwork(CNN, "cnn", (1, 8, 8), 4, (0.5,), (0.5,), ""))
    with pytest.raises(ModelError, match="no attention, which the term patch_entropy needs"):
        PatchEntropy().bind(network, network)


class Grid(nn.Module):
    """One head over patches of 4 x 4 pixels, with heads behind tokens in what it puts out."""

    def __init__(self, behind: bool = False) -> None:
        super().__init__()
        self.embed, self.head, self.behind = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 4), behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2).unflatten(2, (2, 4)).transpose(1, 2)
        attention = (tokens @ tokens.transpose(-2, -1)).softmax(-1)
        if self.behind:
            output = torch.einsum("bhij,bhjd->bihd", attention, tokens)
        else:
            output = (attention @ tokens).transpose(1, 2)
        found: torch.Tensor = self.head(output.flatten(2).mean(1))
        return found


def frozen(network: nn.Module, shape: tuple[int, int, int]) -> FrozenTeacher:
    return FrozenTeacher(PretrainedNetwork(network.eval(), "grid", shape, 4, (0.5,), (0.5,), ""))


@pytest.mark.parametrize("term", [PatchEntropy, HeadSSIM, AttentionStructure, AttentionPrior])
def test_pictures_that_are_no_square_are_refused(term: type[Term]) -> None:
    network = frozen(Grid(), (1, 16, 16))
    term().bind(network, network)
    # 12 tokens would be three and 3 x 3 patches.
    network = frozen(Grid(), (1, 12, 16))
    message = rf"12, 12\) for pictures of 12x16; the term {term.kind} needs .* a square grid"
    with pytest.raises(ModelError, match=message) as caught:
        term().bind(network, network)
    assert "\n" not in str(caught.value)


def test_outputs_whose_heads_stand_behind_tokens_are_refused() -> None:
    network = frozen(Grid(behind=True), (1, 16, 16))
    HeadSSIM().bind(network, network)
    for term in (PatchEntropy(), AttentionStructure()):
        with pytest.raises(ModelError, match=r"puts out \(1, 16, 2, 4\); the term"):
            term.bind(network, network)


def test_similarities_are_float32_under_autocast() -> None:
    output = torch.randn(2, 3, 17, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarities = patch_similarities(output)
    assert similarities.dtype == torch.float32
    assert torch.equal(similarities, patch_similarities(output))
