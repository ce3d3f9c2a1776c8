"""ODS: the direction of a move, its size, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hast_lightning.core.batch import Batch
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.transforms.output_diversity import OutputDiversity, answer_gradient
from tests.small_runs import build_module, fit, small


def teacher() -> FrozenTeacher:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    return FrozenTeacher(PretrainedNetwork(network, "any", (3, 2, 2), 5, (0.5,), (0.5,), ""))


def test_the_gradient_is_that_of_differences() -> None:
    network = teacher()
    images, directions = torch.randn(3, 3, 2, 2).double(), torch.randn(3, 5)
    found = answer_gradient(network, images, directions, 4.0)

    def answer(shown: torch.Tensor) -> torch.Tensor:
        return (directions * (network(shown) / 4).softmax(1)).sum(1)

    for place in ((0, 0, 0), (2, 1, 1), (1, 0, 1)):
        step = torch.zeros_like(images)
        step[(slice(None), *place)] = 1e-3
        plain = (answer(images + step) - answer(images - step)) / 2e-3
        torch.testing.assert_close(found[(slice(None), *place)], plain, rtol=2e-2, atol=1e-4)


def test_the_direction_of_a_label_is_a_step_up_its_probability() -> None:
    network, images = teacher(), torch.randn(6, 3, 2, 2).double()
    labels = torch.arange(6) % 5
    directions = nn.functional.one_hot(labels, 5).float()
    moved = images + 0.01 * answer_gradient(network, images, directions, 4.0).sign()
    rows = torch.arange(6)
    before, after = (network(x).softmax(1)[rows, labels] for x in (images, moved))
    # Of the softened answer, which here rises with the plain one.
    softened = [(network(x) / 4).softmax(1)[rows, labels] for x in (images, moved)]
    assert (softened[1] > softened[0]).all()
    assert (after > before).float().mean() > 0.5


def test_a_move_has_its_size_and_no_trace_in_the_network() -> None:
    network = teacher()
    transform = OutputDiversity(eps=0.02)
    transform.bind(network, network)
    images = torch.randn(4, 3, 2, 2).double().requires_grad_()
    torch.manual_seed(1)
    batch = transform(Batch(images, torch.arange(4)))
    move = (batch.inputs - images).detach()
    torch.testing.assert_close(move.abs(), torch.full_like(move, 0.02))
    assert batch.targets is not None and batch.targets.tolist() == [0, 1, 2, 3]
    batch.inputs.sum().backward()
    assert images.grad is not None and bool((images.grad == 1).all())
    assert all(p.grad is None for p in network.parameters())
    other = transform(Batch(images)).inputs - images
    assert not torch.equal(other.sign(), move.sign())
    assert list(transform.parameters()) == []


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"eps": -0.1}, {"temperature": 0.0}):
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            OutputDiversity(**settings)  # type: ignore[arg-type]


def test_a_student_learns_on_moved_images() -> None:
    config = small("method=hast", "quantizer=minmax")
    config.stages["distillation"].transforms["ods"] = OutputDiversity()
    module = build_module(config)
    fit(module)
    assert module.iteration == module.agenda.iterations
