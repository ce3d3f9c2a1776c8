"""Schedules and DDIM against plain loops, and what must hold of any sampler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hast_lightning.core.diffusion import (
    QUADRATIC,
    Sampler,
    add_noise,
    cosine_alpha_bar,
    ddim_step,
    linear_alpha_bar,
    sampler_times,
    spread_evenly,
    with_time,
    without_time,
)

SHAPE = (2, 4, 4)
"""Of an input of one channel, with its timestep."""


def denoise(inputs: Tensor) -> Tensor:
    """A network that knows the pictures and the timestep, and is no fixed point of anything."""
    pictures, times = without_time(inputs)
    return 0.3 * pictures + times.view(-1, 1, 1, 1) / 100


def test_pictures_and_timesteps_come_apart_as_they_were_put_together() -> None:
    pictures, times = torch.randn(3, 2, 4, 5), torch.tensor([0, 7, 1000])
    inputs = with_time(pictures, times)
    assert inputs.shape == (3, 3, 4, 5)
    assert (inputs[1, 2] == 7).all()
    apart = without_time(inputs)
    assert torch.equal(apart[0], pictures) and apart[1].tolist() == [0, 7, 1000]


def test_the_linear_schedule_is_that_of_ddpm() -> None:
    found, share = linear_alpha_bar(1000), 1.0
    for t in range(1000):
        share *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert float(found[t]) == pytest.approx(share, rel=1e-5)


def test_the_cosine_schedule_is_that_of_its_paper() -> None:
    def f(t: float) -> float:
        return math.cos((t / 50 + 0.008) / 1.008 * math.pi / 2) ** 2

    found = cosine_alpha_bar(50)
    # The last beta is cut to 0.999.
    for t in range(49):
        assert float(found[t]) == pytest.approx(f(t + 1) / f(0), rel=1e-5)
    assert float(found[49] / found[48]) == pytest.approx(0.001, rel=1e-3)


def test_samplers_visit_falling_timesteps_from_the_last() -> None:
    assert sampler_times(1001, 4).tolist() == [1000, 750, 500, 250]
    assert sampler_times(101, 4, QUADRATIC).tolist() == [100, 56, 25, 6]
    # Some coincide, and are visited once.
    assert sampler_times(5, 4, QUADRATIC).tolist() == [4, 2, 1, 0]


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_is_the_papers(eta: float) -> None:
    x, e, z = torch.randn(3, 2, 1, 3, 3)
    a, p = 0.4, 0.7
    clean = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
    sigma = eta * math.sqrt((1 - p) / (1 - a)) * math.sqrt(1 - a / p)
    expected = math.sqrt(p) * clean + math.sqrt(1 - p - sigma**2) * e + sigma * z
    found = ddim_step(x, e, torch.tensor(a), torch.tensor(p), z if eta else None, eta)
    torch.testing.assert_close(found, expected)


def test_the_true_noise_leads_back_to_the_picture() -> None:
    alpha_bar, pictures, noise = (
        linear_alpha_bar(30),
        torch.randn(4, 1, 3, 3),
        torch.randn(4, 1, 3, 3),
    )
    sampler = Sampler(alpha_bar, 6)
    start = add_noise(pictures, noise, alpha_bar[-1])
    found = sampler.sample(lambda inputs: noise, start)
    torch.testing.assert_close(found, pictures, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_points_are_on_runs_of_their_own_whatever_is_run_together(eta: float) -> None:
    sampler = Sampler(linear_alpha_bar(40), 5, eta)
    steps = torch.tensor([4, 0, 2, 2, 1, 3, 4])
    found = sampler.points(denoise, SHAPE, steps, 3, at_once=len(steps))
    assert found[:, -1, 0, 0].tolist() == sampler.times[steps].tolist()
    again = sampler.points(denoise, SHAPE, steps, 3, at_once=len(steps))
    assert torch.equal(found, again)
    if eta:
        return
    # Without noise on the way each is what a run from its own start shows at that step.
    generator = torch.Generator().manual_seed(3)
    noise = sampler.start(len(steps), SHAPE, generator)
    for index, step in enumerate(steps.tolist()):
        shown = list(sampler.walk(denoise, noise[index : index + 1]))
        torch.testing.assert_close(found[index], shown[step][0])


def test_equal_shares_add_up() -> None:
    for count, steps in ((10, 4), (3, 5), (25, 25)):
        shares = spread_evenly(count, steps)
        assert int(shares.sum()) == count and len(shares) == steps
        assert int(shares.max() - shares.min()) <= 1
