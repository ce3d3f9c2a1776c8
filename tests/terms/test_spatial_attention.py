"""Spatial attention and soft weights against plain references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hast_lightning.core.batch import Progress, Seen
from hast_lightning.errors import ConfigurationError
from hast_lightning.terms.channel_attention import alignment_losses
from hast_lightning.terms.spatial_attention import (
    AdaptiveAttention,
    SpatialAttention,
    soft_weights,
    spatial_attention,
    spatial_losses,
)
from tests.parts import seen
from tests.small_runs import build_module, fit, small


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(features: Tensor) -> list[list[float]]:
    rows = []
    for image in features.double():
        means = [
            sum(float(image[c, i, j]) ** 2 for c in range(len(image))) / len(image)
            for i in range(image.shape[1])
            for j in range(image.shape[2])
        ]
        length = math.sqrt(sum(value**2 for value in means))
        rows.append([value / length for value in means])
    return rows


def test_attention_is_the_normalized_mean_square_over_channels() -> None:
    features = noise(3, 4, 2, 5)
    torch.testing.assert_close(spatial_attention(features), torch.tensor(plain(features)))
    torch.testing.assert_close(spatial_attention(7 * features), spatial_attention(features))
    assert spatial_attention(torch.zeros(1, 2, 3, 3)).tolist() == [[0] * 9]


def test_losses_are_mean_squares_by_block_and_follow_weights() -> None:
    student = [noise(3, 4, 2, 5), noise(3, 2, 1, 3)]
    teacher = [noise(3, 4, 2, 5, seed=1), noise(3, 2, 1, 3, seed=1)]
    found = spatial_losses(student, teacher)
    for loss, one, other in zip(found, student, teacher, strict=True):
        difference = torch.tensor(plain(one)) - torch.tensor(plain(other))
        assert float(loss) == pytest.approx(float(difference.square().mean()), rel=1e-5)
    only_first = spatial_losses([student[0][:1]], [teacher[0][:1]])
    weighted = spatial_losses(student[:1], teacher[:1], torch.tensor([2.0, 0, 0]))
    torch.testing.assert_close(weighted, only_first)


def test_what_falls_slowly_weighs_more_and_weights_add_up() -> None:
    last, before = torch.tensor([1.0, 4.0, 3.0]), torch.tensor([2.0, 4.0, 1.5])
    powers = [math.exp(ratio / 2) for ratio in (0.5, 1.0, 2.0)]
    expected = torch.tensor([3 * power / sum(powers) for power in powers])
    torch.testing.assert_close(soft_weights(last, before, 2.0), expected)
    torch.testing.assert_close(soft_weights(5 * last, 5 * last, 1.0), torch.ones(3))
    assert soft_weights(torch.zeros(2), torch.zeros(2), 1.0).tolist() == [1, 1]


class Watched:
    """The adaptive term on the bundled network, and what it sees of random features."""

    def __init__(self, interval: int) -> None:
        self.module = build_module(small("method=hast", "quantizer=minmax"))
        self.term = AdaptiveAttention(interval=interval)
        self.taps = self.term.bind(self.module.teacher, self.module.learner).teacher

    def __call__(self, step: int, mark: str = "", size: float = 1.0) -> tuple[Seen, Tensor]:
        of_teacher = {tap: noise(2, 3, 4, 4, seed=i) for i, tap in enumerate(self.taps)}
        of_student = {t: v + size * noise(2, 3, 4, 4, seed=step + 9) for t, v in of_teacher.items()}
        shown = seen(noise(2, 5), noise(2, 5), of_teacher=of_teacher, of_student=of_student)
        shown = shown._replace(progress=Progress("distillation", step, 99), mark=mark)
        values = list(of_student.values()), list(of_teacher.values())
        return shown, torch.cat([alignment_losses(*values), spatial_losses(*values)])


def test_weights_are_those_of_the_last_two_intervals() -> None:
    watched = Watched(interval=2)
    plain = []
    for step in range(1, 8):
        shown, losses = watched(step, size=1 / step)
        plain.append(losses)
        found = watched.term(shown)
        if step <= 4:
            expected = torch.ones(len(losses))
        else:
            first = 2 * ((step - 1) // 2) - 2  # of the last whole interval
            last, before = (torch.stack(plain[a : a + 2]).mean(0) for a in (first, first - 2))
            expected = soft_weights(last, before, 2.0)
        torch.testing.assert_close(found, expected * losses)
    assert len(watched.term.parts) == 2 * len(watched.taps)


def test_promoted_batches_are_weighted_and_not_remembered() -> None:
    watched = Watched(interval=1)
    for step in (1, 2):
        watched.term(watched(step)[0])
    before = watched.term.sums.clone()
    shown, losses = watched(2, mark="_promoted", size=3)
    torch.testing.assert_close(watched.term(shown), losses)
    assert torch.equal(watched.term.sums, before)


def test_a_step_in_parts_changes_the_weights_once() -> None:
    whole, parted = Watched(interval=1), Watched(interval=1)
    for step in (1, 2, 3):
        whole.term(whole(step)[0])
        for _ in range(2):
            parted.term(parted(step)[0])
    torch.testing.assert_close(parted.term.soft, whole.term.soft)
    assert not torch.equal(whole.term.soft, torch.ones(len(whole.term.soft)))


@pytest.mark.parametrize("settings", [{"interval": 0}, {"temperature": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        AdaptiveAttention(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [SpatialAttention, AdaptiveAttention])
def test_a_run_logs_every_block(kind: type[SpatialAttention] | type[AdaptiveAttention]) -> None:
    config = small("method=hast", "quantizer=minmax")
    config.stages["distillation"].terms["places"] = kind()
    module = build_module(config)
    fit(module)
    names, values = module.outcome.parts["distillation/places"]
    blocks = len(module.outcome.parts["distillation/alignment"][0])
    assert len(names) == len(values) == blocks * (2 if kind is AdaptiveAttention else 1)
    assert values.isfinite().all()


def test_vectors_have_one_place() -> None:
    assert spatial_attention(noise(3, 5)).tolist() == [[1], [1], [1]]
