"""The one input of a network that denoises, taken apart for files."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from hast_lightning.core.diffusion import without_time
from hast_lightning.export.description import Description
from hast_lightning.export.program import export_program
from hast_lightning.export.timed_inputs import inputs_in_files, with_one_input, with_two_inputs
from hast_lightning.graph.tracing import trace
from tests.diffusion import loaded

DENOISES = Description(
    network="tiny",
    teacher_checksum="0" * 64,
    recipe="tiny",
    seed=0,
    quantizer={},
    input_shape=(2, 8, 8),
    num_classes=1,
    mean=(0.0, 0.0),
    std=(1.0, 1.0),
    resize_ratio=1.0,
    modality="diffusion",
)


def test_a_network_of_two_inputs_answers_as_that_of_one() -> None:
    network, inputs = trace(loaded().network), torch.randn(3, 2, 8, 8)
    inputs[:, 1] = torch.tensor([1.0, 7.0, 39.0])[:, None, None]
    split = with_two_inputs(network, DENOISES)
    with torch.no_grad():
        expected = network(inputs)
        torch.testing.assert_close(split(*without_time(inputs)), expected)
        torch.testing.assert_close(with_one_input(split, DENOISES)(inputs), expected)
    shapes = [tuple(each.shape) for each in inputs_in_files(split, (2, 8, 8), 5)]
    assert shapes == [(5, 1, 8, 8), (5,)]


def test_a_program_of_two_inputs_takes_any_number_of_samples() -> None:
    program = export_program(with_two_inputs(trace(loaded().network), DENOISES), (2, 8, 8))
    pictures, times = torch.randn(5, 1, 8, 8), torch.arange(5.0)
    found = program.module()(pictures, times)
    network = loaded().network.network  # type: ignore[union-attr]
    assert found.shape == (5, 1, 8, 8) and isinstance(network, nn.Module)


def test_other_networks_are_left_as_they_are() -> None:
    network = trace(nn.Conv2d(2, 1, 3))
    pictures = dataclasses.replace(DENOISES, modality="pictures")
    assert with_two_inputs(network, pictures) is network
    assert with_one_input(network, pictures) is network
    assert [tuple(each.shape) for each in inputs_in_files(network, (2, 8, 8), 4)] == [(4, 2, 8, 8)]
