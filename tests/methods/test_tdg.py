"""The Gaussian margin and images blended over time, against plain references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from hast_lightning.core.batch import Batch
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.tdg import (
    BlendOverTime,
    GaussianMargin,
    SnapshotGenerator,
    discrepancy,
)
from hast_lightning.sources.generator import ConditionalGenerator
from tests.parts import seen
from tests.small_runs import build_module, fit, small


def test_a_discrepancy_is_that_of_centered_logits() -> None:
    teacher, student = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    for row, (z, y) in enumerate(zip(teacher.tolist(), student.tolist(), strict=True)):
        d = [a - b for a, b in zip(z, y, strict=True)]
        expected = sum(abs(x - sum(d) / 4) for x in d) / 4
        assert float(discrepancy(teacher, student)[row]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(discrepancy(teacher + 3, teacher), torch.zeros(5), atol=1e-6, rtol=0)


def test_the_closest_samples_are_pushed_most() -> None:
    """The factor has no gradient: with it, a sample without discrepancy would not be pushed."""
    student = torch.zeros(3, 2)
    teacher = torch.tensor([[0.1, -0.1], [1.0, -1.0], [3.0, -3.0]], requires_grad=True)
    loss = GaussianMargin(width=1.0)(seen(teacher, student))
    expected = [math.exp(-(d**2) / 2) * d / 3 for d in (0.1, 1.0, 3.0)]
    assert float(loss.detach()) == pytest.approx(-sum(expected), rel=1e-5)
    loss.backward()
    assert teacher.grad is not None
    pushes = -teacher.grad[:, 0]
    assert pushes[0] > pushes[1] > pushes[2] > 0
    assert float(pushes[0]) == pytest.approx(math.exp(-0.005) / 6, rel=1e-5)


def blend(lowest: float = 0.5) -> BlendOverTime:
    made = BlendOverTime(lowest=lowest)
    made.bind(None, None)  # type: ignore[arg-type]
    return made


def test_images_are_blended_with_those_of_the_step_before_as_they_were() -> None:
    torch.manual_seed(0)
    transform = blend(0.5)
    first, second, third = (torch.full((6, 1, 2, 2), value) for value in (0.0, 1.0, 3.0))
    assert torch.equal(transform(Batch(first)).inputs, first)
    blended = transform(Batch(second, torch.arange(6)))
    assert blended.targets is not None and blended.targets.tolist() == list(range(6))
    shares = blended.inputs[:, 0, 0, 0]
    assert ((shares >= 0.5) & (shares <= 1)).all() and len(shares.unique()) == 6
    after = transform(Batch(third)).inputs  # between 1 and 3: not with what was blended
    assert ((after >= 2) & (after <= 3)).all()


def test_images_that_change_in_place_are_blended_with_what_they_were() -> None:
    transform, images = blend(0.0), torch.zeros(6, 1, 2, 2)
    transform(Batch(images))
    images.fill_(1)
    assert float(transform(Batch(images)).inputs.min()) < 0.99


def test_a_batch_of_another_size_stays_and_a_share_of_one_changes_nothing() -> None:
    transform = blend(1.0)
    transform(Batch(torch.randn(4, 1, 2, 2)))
    smaller, again = torch.randn(2, 3, 1, 2, 2)
    assert torch.equal(transform(Batch(smaller)).inputs, smaller)
    torch.testing.assert_close(transform(Batch(again)).inputs, again)


def test_the_former_batch_is_in_checkpoints() -> None:
    transform, restored = blend(0.0), blend(0.0)
    transform(Batch(torch.ones(3, 1, 2, 2)))
    restored.load_state_dict(transform.state_dict())
    blended = restored(Batch(torch.zeros(3, 1, 2, 2))).inputs
    assert blended.max() > 0


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="width"):
        GaussianMargin(width=0.0)
    with pytest.raises(ConfigurationError, match="lowest"):
        BlendOverTime(lowest=1.5)


def test_a_run_pushes_and_blends() -> None:
    module = build_module(small("method=tdg_style", "quantizer=minmax"))
    fit(module)
    assert module.outcome.scalars["synthesis/margin"] <= 0
    blended = module.stages["alternation"].distillation.transforms["blend"]
    assert blended._former is not None


# -- snapshots ----------------------------------------------------------------------------


def snapshots(**settings: Any) -> SnapshotGenerator:
    torch.manual_seed(0)
    made = SnapshotGenerator(**settings)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    made.build(Site(PretrainedNetwork(network, "any", (1, 8, 8), 10, (0.5,), (0.5,), "")))
    return made


def step(made: SnapshotGenerator, value: float) -> None:
    """Be improved once, to weights that are all the same."""
    with torch.no_grad():
        for weight in made.parameters():
            weight.fill_(value)
    made.improved(0.0, {})


def test_the_latest_states_are_kept() -> None:
    made = snapshots(every=2, kept=2)
    for value in range(1, 8):
        step(made, float(value))
    assert made.snapshots[:, 0].tolist() == [6, 4]
    assert all(bool((row == row[0]).all()) for row in made.snapshots)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_former_state_makes_a_share_of_the_samples_for_the_same_labels(share: float) -> None:
    made = snapshots(every=1, kept=1, share=share)
    plain = ConditionalGenerator()
    plain.build(made.site)
    plain.load_state_dict({n: v for n, v in made.state_dict().items() if n in plain.state_dict()})
    made.improved(0.0, {})
    for weight in made.parameters():
        # Now it makes images that are the same everywhere, which a BatchNorm makes zero.
        torch.nn.init.zeros_(weight)
    torch.manual_seed(1)
    batch = made.sample(200)
    former = batch.inputs.flatten(1).abs().sum(1) > 0
    assert float(former.float().mean()) == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0)
    assert batch.targets is not None
    # The same noise and labels in the generator that it was.
    torch.manual_seed(1)
    torch.randn(200, 100), torch.randint(10, (200,))
    noise = torch.randn(200, 100)
    with torch.no_grad(), plain._untraced():
        expected = plain(noise, batch.targets)
    torch.testing.assert_close(batch.inputs[former], expected[former])


def test_before_the_first_snapshot_all_is_as_with_a_plain_generator() -> None:
    made = snapshots(every=5)
    made.improved(0.0, {})
    plain = ConditionalGenerator()
    plain.build(made.site)
    plain.load_state_dict({n: v for n, v in made.state_dict().items() if n in plain.state_dict()})
    batches = []
    for each in (made, plain):
        torch.manual_seed(1)
        batches.append(each.sample(8))
    assert torch.equal(batches[0].inputs, batches[1].inputs)


@pytest.mark.parametrize("settings", [{"every": 0}, {"kept": 0}, {"share": 1.5}])
def test_snapshots_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        SnapshotGenerator(**settings)
