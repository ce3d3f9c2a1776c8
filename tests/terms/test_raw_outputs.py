"""The error of outputs as they are, and the divergence of one of several."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.core.outputs import Outputs
from hast_lightning.errors import ModelError
from hast_lightning.graph.network import Learner
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.terms.kl import KL, kl_divergence, require_classes
from hast_lightning.terms.raw_outputs import RawOutputs, relative_squared_error
from tests.export.families import noise
from tests.several_outputs import described, segmentation

OUTPUTS = Outputs(("maps", "score"), ((2, 2, 2), (3,)), ("list", ("maps", "score")))


def seen(outputs: Outputs | None = OUTPUTS, weights: torch.Tensor | None = None) -> Seen:
    student, teacher = (Trace(noise(4, 11, seed=seed), {}, outputs) for seed in (1, 2))
    return Seen(Batch(teacher.logits, None, weights), teacher, student, Progress("any", 1, 1))


def test_it_is_the_mean_over_outputs_of_errors_in_their_own_spreads() -> None:
    look = seen()
    assert look.student is not None
    parts = RawOutputs()(look)
    for number, part in enumerate((slice(0, 8), slice(8, 11))):
        s, t = look.student.logits[:, part].double(), look.teacher.logits[:, part].double()
        expected = ((s - t) ** 2).mean() / ((t - t.mean()) ** 2).mean() / 2
        assert float(parts[number]) == pytest.approx(float(expected), rel=1e-5)
    scale = torch.tensor([1.0] * 8 + [1000.0] * 3)
    scaled = [each._replace(logits=each.logits * scale) for each in (look.student, look.teacher)]
    other = look._replace(student=scaled[0], teacher=scaled[1])
    torch.testing.assert_close(RawOutputs()(other), parts)


def test_one_of_several_is_named_and_an_only_one_needs_no_name() -> None:
    look = seen()
    assert look.student is not None
    s, t = look.student.logits, look.teacher.logits
    torch.testing.assert_close(
        RawOutputs(output="score")(look), relative_squared_error(s[:, 8:], t[:, 8:])
    )
    torch.testing.assert_close(RawOutputs()(seen(None)), relative_squared_error(s, t))


def test_samples_without_weight_do_not_count() -> None:
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0])
    look = seen(None, weights)
    assert look.student is not None
    s, t = look.student.logits, look.teacher.logits
    expected = (s[0] - t[0]).square().mean() / t.var(correction=0)
    torch.testing.assert_close(RawOutputs()(look), expected)


@pytest.mark.parametrize("shape", [(1, 1), (4, 3)], ids=["one value", "a constant output"])
def test_values_without_a_spread_are_compared_to_their_size(shape: tuple[int, ...]) -> None:
    teacher = torch.full(shape, 2.0)
    found = relative_squared_error(1.01 * teacher, teacher)
    assert float(found) == pytest.approx(1e-4, rel=1e-3)
    assert float(relative_squared_error(teacher, teacher)) == 0


def test_a_divergence_is_that_of_the_maps_that_are_named() -> None:
    pretrained = described(segmentation())
    teacher = FrozenTeacher(pretrained)
    student = Learner(convert(pretrained.network, QuantizerConfig(bits=4)), pretrained)
    images = noise(2, 3, 16, 16)
    term = KL(output="aux", temperature=2.0)
    assert term.several_outputs and not KL().several_outputs
    term.bind(teacher, student)
    look = Seen(Batch(images), teacher.trace(images), student.trace(images), Progress("any", 1, 1))
    assert look.student is not None
    found, expected = (each.by_name()["aux"] for each in (look.student, look.teacher))
    torch.testing.assert_close(term(look), kl_divergence(found, expected, 2.0))
    with pytest.raises(ModelError, match="output=main: the network puts out out, aux"):
        KL(output="main").bind(teacher, student)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1,), (2, 4)])
def test_a_divergence_of_what_has_no_classes_is_refused(shape: tuple[int, ...]) -> None:
    outputs = Outputs(("maps", "other"), (shape, (3,)), ("list", ("maps", "other")))
    network = replace(described(segmentation()), outputs=outputs)
    with pytest.raises(ModelError, match="raw_outputs takes any"):
        require_classes(network, "maps")
    require_classes(network, "other")
