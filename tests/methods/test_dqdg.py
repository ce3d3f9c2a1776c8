"""What is after DQDG, against plain references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.methods.dqdg import (
    CenterDistance,
    DualGenerator,
    MaskedKL,
    Selector,
    center_distances,
    selected,
)
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.terms.kl import kl_divergence
from tests.features import features, loaded
from tests.small_runs import build_module, fit, small


def generator() -> DualGenerator:
    torch.manual_seed(0)
    source = DualGenerator(latent_dim=7)
    source.build(Site(loaded(), key="sources.generator"))
    return source


def test_both_generators_are_given_the_same_labels_and_make_a_half_each() -> None:
    source = generator()
    batch = source.propose()
    assert batch.targets is not None and len(batch.inputs) == source.batch_size == 64
    assert torch.equal(batch.targets[:32], batch.targets[32:])
    noise, labels = torch.randn(9, 7), torch.arange(9) % 3
    source.eval()
    whole = source(noise, labels)
    torch.testing.assert_close(whole[5:], source.second(noise[5:], labels[5:]))
    source.second.load_state_dict(
        {name: v for name, v in source.state_dict().items() if not name.startswith("second.")}
    )
    torch.testing.assert_close(source(noise, labels)[:5], source.second(noise[:5], labels[:5]))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_samples_is_made(count: int) -> None:
    source = generator()
    for batch in (source.sample(count), source.held_out(count)):
        assert batch.targets is not None
        assert len(batch.inputs) == len(batch.targets) == count


def test_both_are_trained_and_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    source = generator()
    source.propose().inputs.square().sum().backward()
    optimizer = source.optimizers()["adam"]
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(p) for p in source.second.parameters()} < trained
    assert all(p.grad is not None for p in source.second.parameters())
    source.save(tmp_path / "g.safetensors")
    again = DualGenerator(latent_dim=7, load=str(tmp_path / "g.safetensors"))
    again.build(Site(loaded(), key="sources.generator"))
    assert torch.equal(again.held_out(6).inputs, source.held_out(6).inputs)


def test_centers_of_classes_that_both_halves_have() -> None:
    vectors = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 0, 1, 2, 0, 1, 1, 3])
    expected = [
        (vectors[[0, 1]].mean(0) - vectors[4]).norm(),
        (vectors[2] - vectors[[5, 6]].mean(0)).norm(),
    ]
    torch.testing.assert_close(center_distances(vectors, labels, 5), torch.stack(expected))


def test_the_same_samples_cost_the_margin_and_far_ones_nothing() -> None:
    teacher = FrozenTeacher(loaded())
    term = CenterDistance(margin=0.5)
    (node,) = term.bind(teacher, teacher).teacher

    def loss(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        batch = Batch(values, labels)
        return term(Seen(batch, Trace(values, {node: values}), None, Progress("any", 1, 1)))

    half = torch.rand(4, 24, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0])
    same = loss(torch.cat([half, half]), torch.cat([labels, labels]))
    assert float(same.detach()) == pytest.approx(0.5, abs=1e-6)
    same.backward()
    assert half.grad is not None and bool(half.grad.isfinite().all())
    far = loss(torch.cat([half, -half]).detach(), torch.cat([labels, labels]))
    assert float(far) == 0
    nothing_in_common = loss(torch.rand(4, 24), torch.tensor([0, 0, 1, 1]))
    assert float(nothing_in_common) == 0


def test_good_samples_are_selected_and_never_none() -> None:
    sure, unsure, wrong = [4.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 4.0, 0.0]
    logits, labels = torch.tensor([sure, unsure, wrong, sure]), torch.zeros(4, dtype=torch.int64)
    assert selected(logits, labels, 0.8, 0.5).tolist() == [True, False, False, True]
    assert selected(logits, labels, 0.8, 0.75).tolist() == [True, True, False, True]
    bad = torch.tensor([wrong, wrong])
    assert int(selected(bad, labels[:2], 0.8, 0.0).sum()) == 1


def test_what_is_not_selected_has_no_weight() -> None:
    teacher, transform = FrozenTeacher(loaded()), Selector(threshold=0.5, least=0.1)
    transform.bind(teacher, teacher)
    inputs, labels = features(32), torch.arange(32) % 3
    found = transform(Batch(inputs, labels))
    expected = selected(teacher(inputs), labels, 0.5, 0.1).float()
    assert found.weights is not None and torch.equal(found.weights, expected)
    assert torch.equal(found.inputs, inputs)
    halved = transform(Batch(inputs, labels, torch.full((32,), 0.5)))
    assert halved.weights is not None and torch.equal(halved.weights, 0.5 * expected)


class Recorder(nn.Module):
    """A student that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.shown = FrozenTeacher(loaded()), torch.zeros(0)

    def trace(self, inputs: torch.Tensor, *_: object) -> Trace:
        self.shown = inputs
        return Trace(2 * self.teacher(inputs), {})


def test_the_student_is_shown_less_than_the_teacher() -> None:
    student, inputs = Recorder(), features(16)
    teacher = student.teacher
    weights = (torch.arange(16) % 2).float()
    seen = Seen(Batch(inputs, None, weights), teacher.trace(inputs), None, Progress("any", 1, 1))
    for frames in (0, 5):
        term = MaskedKL(temperature=3.0, frames=frames)
        term.bind(teacher, student)  # type: ignore[arg-type]
        torch.manual_seed(0)
        found = term(seen)
        changed = (student.shown != inputs).any(dim=3).any(dim=1).sum(dim=1)
        assert int(changed.max()) == frames
        expected = kl_divergence(
            2 * teacher(student.shown), teacher(inputs), 3.0, "batchmean", weights
        )
        torch.testing.assert_close(found, expected)


def test_settings_out_of_range_are_refused() -> None:
    for part, key, value in (
        (CenterDistance, "margin", 2.5),
        (Selector, "threshold", 1.1),
        (Selector, "least", -0.1),
        (MaskedKL, "frames", -1),
    ):
        with pytest.raises(ConfigurationError, match=key):
            part(**{key: value})


def test_a_run_keeps_centers_apart_and_selects() -> None:
    module = build_module(small("method=dqdg_style", "quantizer=minmax"))
    fit(module)
    assert 0 <= module.outcome.scalars["synthesis/centers"] <= 0.5
    weights = module.outcome.answers[""][0].batch.weights
    assert weights is not None and int(weights.sum()) >= 6


def test_masks_of_frames_need_frames() -> None:
    wave = PretrainedNetwork(Wave().eval(), "wave", (2, 32), 4, (0.5,) * 2, (0.5,) * 2, "")  # type: ignore[arg-type]
    network = FrozenTeacher(wave)
    with pytest.raises(ModelError, match=r"term masked_kl masks frames .* wave takes") as caught:
        MaskedKL().bind(network, network)
    assert "\n" not in str(caught.value)


class Wave(nn.Module):
    """Of signals (N, 2, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.first(x).relu().mean(2))
        return found
