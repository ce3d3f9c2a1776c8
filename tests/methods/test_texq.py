"""Layered statistics and class centers against plain references, and a few steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.texq import (
    CenterStatistics,
    ClassCenters,
    LayeredBNS,
    first_deep_layer,
)
from hast_lightning.models.ensemble import teacher_of, with_teachers
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.terms.bns import BNS, AtBatchNorms
from tests.composition import composed
from tests.small_runs import build_module, fit, small

LAYERS = 6


def network(layers: int = LAYERS, seed: int = 0) -> PretrainedNetwork:
    torch.manual_seed(seed)
    blocks: list[nn.Module] = []
    for index in range(layers):
        norm = nn.BatchNorm2d(4)
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
        blocks += [nn.Conv2d(4 if index else 1, 4, 3, padding=1), norm, nn.ReLU()]
    made = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    return PretrainedNetwork(made, "any", (1, 8, 8), 5, (0.5,), (0.5,), "")


def seen_by(term: AtBatchNorms, teacher: FrozenTeacher, images: Tensor) -> Seen:
    needs = term.bind(teacher, teacher)
    trace = teacher.trace(images, needs.teacher, unfolded=needs.batch_norms)
    return Seen(Batch(images), trace, None, Progress("synthesis", 1, 1))


def measured(term: AtBatchNorms, images: Tensor) -> tuple[Seen, list[tuple[Tensor, ...]]]:
    """What the term sees of images, and what each BatchNorm has and expects, by plain means."""
    teacher = FrozenTeacher(network())
    seen = seen_by(term, teacher, images)
    trace = seen.teacher
    norms = [m for m in teacher.graph_module.modules() if isinstance(m, nn.BatchNorm2d)]
    found = []
    for values, norm in zip(trace.values.values(), norms, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        statistics = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
        found.append((*statistics, norm.running_mean, norm.running_var))
    return seen, found


@pytest.mark.parametrize(("layers", "place"), [(1, 0), (2, 0), (6, 2), (20, 9), (21, 9), (53, 25)])
def test_the_second_half_begins_where_the_code_has_it(layers: int, place: int) -> None:
    assert first_deep_layer(layers) == place


def test_deep_layers_count_more() -> None:
    seen, layers = measured(term := LayeredBNS(shallow=0.2, deep=1.1), torch.randn(3, 1, 8, 8))
    expected = 0.0
    for index, (mean, var, running_mean, running_var) in enumerate(layers):
        distance = (mean - running_mean).square().mean() + (var - running_var).square().mean()
        expected += float((0.2 if index < 2 else 1.1) * distance) / LAYERS
    assert float(term(seen)) == pytest.approx(expected, rel=1e-5)


def test_equal_weights_are_the_plain_loss() -> None:
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    layered, plain = LayeredBNS(shallow=1.0, deep=1.0), BNS()
    found = layered(measured(layered, images)[0])
    torch.testing.assert_close(found, plain(measured(plain, images)[0]))


@pytest.mark.parametrize("by_images", [True, False])
@pytest.mark.parametrize("count", [5, 70])
def test_statistics_are_drawn_to_those_of_all_centers_together(count: int, by_images: bool) -> None:
    """Also where the centers go through the teacher in parts: within and between count."""
    seeded = torch.Generator().manual_seed(1)
    centers = torch.randn(count, 1, 8, 8, generator=seeded)
    centers *= torch.linspace(0.2, 3, count).view(-1, 1, 1, 1)
    images = torch.randn(4, 1, 8, 8, generator=seeded)
    term = CenterStatistics(by_images=by_images)
    term.fed = True
    _, wanted = measured(term, centers)
    seen, had = measured(term, images)
    term.measure(centers)
    expected = 0.0
    for (mean, var, *_), (center_mean, center_var, *_) in zip(had[2:], wanted[2:], strict=True):
        expected += float((mean - center_mean).square().mean() + (var - center_var).square().mean())
    expected /= LAYERS * (4 if by_images else 1)
    assert float(term(seen)) == pytest.approx(expected, rel=1e-4)


def test_the_centers_themselves_are_at_no_distance() -> None:
    seen, _ = measured(term := CenterStatistics(), torch.randn(4, 1, 8, 8))
    term.fed = True
    term.measure(seen.batch.inputs)
    assert float(term(seen)) == pytest.approx(0, abs=1e-9)


# -- several teachers ---------------------------------------------------------------------


def center_loss(teacher: FrozenTeacher, centers: Tensor, images: Tensor) -> float:
    term = CenterStatistics(by_images=False)
    term.fed = True
    seen = seen_by(term, teacher, images)
    term.measure(centers)
    return float(term(seen))


def layered_loss(teacher: FrozenTeacher, centers: Tensor, images: Tensor) -> float:
    term = LayeredBNS()
    return float(term(seen_by(term, teacher, images)))


@pytest.mark.parametrize("loss", [center_loss, layered_loss])
def test_each_of_several_teachers_has_shallow_and_deep_layers_of_its_own(
    loss: Callable[[FrozenTeacher, Tensor, Tensor], float],
) -> None:
    """Two equal teachers are one, and of different ones it is the mean."""
    seeded = torch.Generator().manual_seed(1)
    centers, images = torch.randn(2, 6, 1, 8, 8, generator=seeded)
    centers *= 2
    own, other = network(), network(layers=9, seed=1)
    alone = loss(FrozenTeacher(own), centers, images)
    twins = teacher_of(with_teachers(own, {"twin": own}))
    assert loss(twins, centers, images) == pytest.approx(alone, rel=1e-5)
    both = teacher_of(with_teachers(own, {"other": other}))
    expected = (alone + loss(FrozenTeacher(other), centers, images)) / 2
    assert loss(both, centers, images) == pytest.approx(expected, rel=1e-5)


# -- the source and the stage -------------------------------------------------------------


@pytest.mark.parametrize(("classes", "most", "batch"), [(10, 256, 10), (10, 4, 2), (7, 3, 1)])
def test_there_is_a_center_for_each_class(classes: int, most: int, batch: int) -> None:
    torch.manual_seed(0)
    source = ClassCenters(batch_size=most, iterations=2)
    pretrained = PretrainedNetwork(nn.Identity(), "any", (1, 4, 4), classes, (0.5,), (0.5,), "")
    source.build(Site(pretrained))
    assert (source.batch_size, source.steps_to_fill) == (batch, 2 * classes // batch)
    optimizers = source.optimizers()
    for _ in range(source.steps_to_fill):
        source.improved(1.0, optimizers)
    assert source.full
    labels = source.collect(1000).targets
    assert labels is not None and labels.tolist() == list(range(classes))


def test_the_term_in_another_stage_is_refused_in_one_line() -> None:
    config = small("method=hast", "quantizer=minmax")
    config.stages["synthesis"].terms["centers"] = CenterStatistics()
    with pytest.raises(ConfigurationError, match="needs the stage synth") as refusal:
        fit(build_module(config))
    assert "\n" not in str(refusal.value)


def test_constants_are_those_that_are_known() -> None:
    config = composed("method=texq_style", "schedule=released")
    centers, made = config.stages["centers"].terms, config.stages["synthesis"].terms
    assert (centers["bns"].shallow, centers["bns"].deep) == (0.2, 1.1)
    assert centers["cross_entropy"].weight == 5
    assert (made["bns"].weight, made["centers"].weight) == (0.4, 0.02)
    source = config.sources["centers"]
    assert (source.iterations, source.lr, source.patience, source.min_lr) == (1500, 0.5, 50, 0.05)
    assert config.stages["distillation"].batch_size == 128


def test_a_run_measures_its_centers_before_it_makes_images() -> None:
    module = build_module(small("method=texq_style", "quantizer=minmax"))
    assert list(module.agenda.stages) == ["centers", "synthesis", "calibration", "distillation"]
    fit(module)
    term = module.stages["synthesis"].terms["centers"]
    assert term.means.abs().sum() > 0 and (term.variances > 0).all()
    centers = module.sources["centers"]
    assert centers.full and len(centers.images) == 10
