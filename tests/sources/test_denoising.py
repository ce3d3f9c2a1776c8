"""Points of sampling runs: how many of which step, what is held out, what a checkpoint has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.sources.denoising import PlainSamplingRuns
from hast_lightning.stages.reading import require_batch
from tests.diffusion import SHAPE, TIMESTEPS, loaded


def built(**settings: object) -> PlainSamplingRuns:
    source = PlainSamplingRuns(**{"samples": 12, "held_out_samples": 4, "steps": 4} | settings)  # type: ignore[arg-type]
    source.build(Site(loaded(), key="sources.points"))
    return source


def test_every_step_gives_as_many_points() -> None:
    torch.manual_seed(0)
    source = built()
    inputs = source.collect(12).inputs
    assert inputs.shape == (12, 2, *SHAPE[1:])
    times = inputs[:, -1]
    assert (times == times[:, :1, :1]).all()
    for time in source.sampler.times:
        assert int((times[:, 0, 0] == time).sum()) == 3
    # In no order: a few of them are of several steps.
    assert len(times[:3, 0, 0].unique()) > 1


def test_a_batch_of_more_points_than_there_are_is_refused() -> None:
    bench = SimpleNamespace(sources={"points": built()})
    require_batch(bench, "points", 1024, 12, "stages.reconstruction")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="more than the 12 samples"):
        require_batch(bench, "points", 1024, 13, "stages.reconstruction")  # type: ignore[arg-type]


def test_the_last_step_alone_is_the_one_next_to_a_picture() -> None:
    times = built(timesteps="last").collect(12).inputs[:, -1, 0, 0]
    assert (times == round((TIMESTEPS - 1) / 4)).all()


def test_held_out_points_are_of_other_runs_and_leave_no_trace() -> None:
    torch.manual_seed(0)
    source = built()
    inputs, before = source.collect(12).inputs, torch.get_rng_state()
    held = source.held_out(100).inputs
    assert len(held) == 4 and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(held, built().held_out(4).inputs)
    apart = (held[:, None] - inputs[None]).square().flatten(2).sum(2)
    assert float(apart.min()) > 1e-3


@pytest.mark.parametrize("of_rank", [False, True])
def test_points_come_back_from_a_state(of_rank: bool) -> None:
    torch.manual_seed(0)
    source = built()
    inputs = source.collect(12).inputs
    other = built()
    assert other.own_state() == {}
    if of_rank:
        other.set_own_state(source.own_state())
    else:
        other.load_state_dict(source.state_dict())
    before = torch.get_rng_state()
    assert torch.equal(other.collect(12).inputs, inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_are_among_the_points() -> None:
    source = built()
    points, drawn = source.collect(12).inputs, source.sample(30).inputs
    assert all((drawn[i] == points).flatten(1).all(1).any() for i in range(30))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": TIMESTEPS}, "a sampler skips some"),
        ({"spacing": "cubic"}, "spacing='cubic'"),
        ({"timesteps": "first"}, "timesteps='first'"),
        ({"eta": 2.0}, "eta=2.0"),
        ({"load": "points.safetensors"}, "leave load out"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        built(**settings)
