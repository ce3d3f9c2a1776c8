"""Images whose statistics match as a set: against passes over all of them, and after a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.batch import Batch, Progress, Seen, Trace
from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.dgh import (
    ImageSet,
    LogitRange,
    SetStatistics,
    SynthesizeSet,
    blurred,
)
from hast_lightning.records.result import Result
from hast_lightning.training.module import ZeroShotQuantization
from tests import features
from tests.command_line import TINY, call
from tests.composition import composed
from tests.small_runs import Saved, build_module, fit, small

WORDS = ("method=dgh", "quantizer=mse")


def built(*words: str) -> tuple[ZeroShotQuantization, ImageSet, SynthesizeSet, SetStatistics]:
    module = build_module(small(*WORDS, "data.holdout=0", *words))
    source, stage = module.sources["bank"], module.stages["synthesis"]
    assert isinstance(source, ImageSet)
    assert isinstance(stage, SynthesizeSet)
    term = stage.terms["set_statistics"]
    assert isinstance(term, SetStatistics)
    return module, source, stage, term


def loss_of_all(module: ZeroShotQuantization, images: Tensor) -> Tensor:
    """The loss by hooks on one pass of all images: the definition, without any accumulation."""
    network = module.teacher.graph_module
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    found: list[Tensor] = []

    def compare(layer: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None and layer.running_var is not None
        values = given[0].double()
        mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
        deviation = (variance + 1e-6).sqrt() - layer.running_var.double().sqrt()
        found.append((mean - layer.running_mean).square().mean() + deviation.square().mean())

    handles = [layer.register_forward_pre_hook(compare) for layer in layers]
    network(images)
    for handle in handles:
        handle.remove()
    return torch.stack(found).mean()


def seen_by(module: ZeroShotQuantization, term: SetStatistics, images: Tensor) -> Seen:
    nodes = tuple(node for node, _ in term._layers)
    trace = module.teacher.trace(images, nodes, unfolded=True)
    return Seen(Batch(images), trace, None, Progress("synthesis", 1, 1))


# -- The whole set ----------------------------------------------------------------------------


def test_the_loss_and_its_gradient_are_those_of_all_images_in_one_pass() -> None:
    module, source, stage, term = built("schedule.images=96")
    stage.begin(module.bench)
    images = [source.finalized(number) for number in range(3)]
    for number in range(3):
        term.number = number
        accumulated = (images[number] + 0.1).requires_grad_()
        whole = accumulated.detach().clone().requires_grad_()
        found = term(seen_by(module, term, accumulated))
        others = [image for other, image in enumerate(images) if other != number]
        expected = loss_of_all(module, torch.cat([whole, *others]))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
        found.backward()
        expected.backward()
        assert accumulated.grad is not None and whole.grad is not None
        assert float(whole.grad.abs().max()) > 0
        torch.testing.assert_close(accumulated.grad, whole.grad, rtol=1e-3, atol=1e-9)


def test_batches_that_do_not_match_can_make_a_set_that_does() -> None:
    """Two batches that lie to either side of the statistics: the set's are between them."""
    module, source, stage, term = built()
    stage.begin(module.bench)
    term.number = 0
    images = [source.finalized(0) + 0.5, source.finalized(1) - 0.5]
    # Layer by layer, since what a layer takes in depends on the ones before it.
    for node, (layer,) in term._layers:
        values = seen_by(module, term, torch.cat(images)).teacher.values[node]
        assert isinstance(layer.running_mean, Tensor) and isinstance(layer.running_var, Tensor)
        layer.running_mean.copy_(values.mean((0, 2, 3)))
        layer.running_var.copy_(values.var((0, 2, 3), correction=0))
    term.measure(1, seen_by(module, term, images[1]))
    matched = float(term(seen_by(module, term, images[0])))
    alone = float(loss_of_all(module, images[0]))
    assert matched < 1e-6
    assert alone > 1e-3


def test_a_batch_is_measured_again_as_it_would_be_stored_when_it_was_improved() -> None:
    module, source, _, term = built()
    fit(module)
    # Images in the bank are those of the last step, in the order of their batches.
    for number, images in enumerate(source.images.split(source.batch_size)):
        assert torch.equal(images, source.finalized(number))
        values = [v.double() for v, _, _ in term.inputs(seen_by(module, term, images))]
        means = torch.cat([v.mean((0, 2, 3)) for v in values])
        squares = torch.cat([v.square().mean((0, 2, 3)) for v in values])
        torch.testing.assert_close(term.moments[0, number], means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(term.moments[1, number], squares, rtol=1e-4, atol=1e-5)


def test_without_its_stage_the_batch_at_hand_is_the_set() -> None:
    module, _, _, term = built()
    term.bind(module.teacher, module.learner)
    images = torch.randn(8, 1, 8, 8)
    found = term(seen_by(module, term, images)).double()
    torch.testing.assert_close(found, loss_of_all(module, images), rtol=1e-5, atol=0)


# -- Images -----------------------------------------------------------------------------------


def test_a_blurred_pixel_is_the_gaussian_mean_of_its_neighbors() -> None:
    images = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    weights = {
        (r, c): math.exp(-(r * r + c * c) / (2 * 1.25**2)) for r in (-1, 0, 1) for c in (-1, 0, 1)
    }
    total = sum(weights.values())
    found = blurred(images)
    assert found.shape == images.shape
    for row, column in ((2, 3), (0, 0), (4, 5)):
        expected = sum(
            weight * images[..., min(max(row + r, 0), 4), min(max(column + c, 0), 5)]
            for (r, c), weight in weights.items()
        )
        torch.testing.assert_close(found[..., row, column], expected / total)


def test_the_network_sees_crops_and_flips_of_larger_images_and_the_bank_gets_the_centre() -> None:
    _, source, _, _ = built("sources.bank.extra=0.5")
    assert source.pixels[0].shape == (32, 1, 12, 12)
    number = source.turn
    smooth = (blurred(source.pixels[number].detach()) - 127.5) / 127.5
    allowed = [
        each[..., top : top + 8, left : left + 8]
        for each in (smooth, smooth.flip(3))
        for top in range(5)
        for left in range(5)
    ]
    torch.manual_seed(0)
    views = [source.propose().inputs.detach() for _ in range(60)]
    hits = {
        next(i for i, crop in enumerate(allowed) if torch.allclose(crop, view, atol=1e-5))
        for view in views
    }
    assert len(hits) > 20
    assert max(hits) >= 25 > min(hits)  # some are flipped
    torch.testing.assert_close(source.finalized(number), smooth[..., 2:10, 2:10])


def test_all_batches_get_as_many_steps_and_pixels_stay_valid() -> None:
    module, source, stage, _ = built("schedule.image_steps=4", "sources.bank.lr=200")
    turns = []
    improved = source.improved

    def remember(*given: Any) -> Any:
        turns.append(source.turn)
        return improved(*given)

    source.improved = remember  # type: ignore[method-assign]
    before = [batch.detach().clone() for batch in source.pixels]
    assert stage.length(module.bench) == 8
    fit(module)
    assert [sorted(turns[start : start + 2]) for start in range(0, 8, 2)] == [[0, 1]] * 4
    for old, new in zip(before, map(Tensor.detach, source.pixels), strict=True):
        assert not torch.equal(old, new)
        assert float(new.min()) >= 0 and float(new.max()) <= 255


def test_a_rate_falls_after_too_many_steps_without_a_lower_loss_and_only_that_one() -> None:
    _, source, _, _ = built("sources.bank.patience=2", "schedule.image_steps=50")
    (optimizer,) = source.optimizers().values()
    rates = []
    for loss in (1.0, 0.5, 0.5, 0.6, 0.49999, 0.7, 0.7, 0.7, 0.1):
        source._step_rate(1, loss, optimizer.param_groups[1])
        rates.append(optimizer.param_groups[1]["lr"])
    # The third step that is not lower by a ten-thousandth; then the lowest is forgotten.
    assert rates == [16, 16, 16, 16, 8, 8, 8, 8, 8]
    assert optimizer.param_groups[0]["lr"] == 16


@pytest.mark.parametrize(("steps", "waits"), [(500, 10), (1000, 20), (200, 4), (3, 0)])
def test_a_plateau_is_a_fiftieth_of_the_iterations_where_nothing_else_is_set(
    steps: int, waits: int
) -> None:
    assert ImageSet(iterations=steps).patience == waits
    assert ImageSet(iterations=steps, patience=7).patience == 7
    _, source, _, _ = built(f"schedule.image_steps={steps}")
    assert source.patience == waits


def test_the_range_of_logits_is_its_mean_over_images() -> None:
    logits = torch.tensor([[1.0, 4.0, -2.0], [0.0, 0.5, 0.25]])
    seen = Seen(Batch(torch.zeros(2, 1)), Trace(logits, {}), None, Progress("synthesis", 1, 1))
    assert float(LogitRange()(seen)) == pytest.approx(-(6 + 0.5) / 2)


# -- The method -------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_that_is_resumed_ends_with_the_same_images_and_student(
    tmp_path: Path, stop: int
) -> None:
    """Within the first iteration, within the second, and between two."""
    words = ("schedule.image_steps=3", "sources.bank.patience=0")
    whole, bank, _, term = built(*words)
    fit(whole, [Saved(stop, tmp_path / "middle.ckpt")])
    resumed, *_ = built(*words)
    fit(resumed, checkpoint=tmp_path / "middle.ckpt")
    expected, found = whole.state_dict(), resumed.state_dict()
    assert term.moments.abs().sum() > 0 and bank.full
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, found[name]), name


def test_another_source_is_refused_by_name() -> None:
    words = (
        "source@sources.bank=image_bank_of_schedule",
        "stages.synthesis.terms.logit_range.weight=0",
    )
    with pytest.raises(ConfigurationError) as refused:
        build_module(small(*WORDS, *words))
    assert str(refused.value) == (
        "stages.synthesis.source=bank: synthesize_set improves an image_set, and this is a source "
        "of kind image_bank"
    )


def test_two_steps_of_every_stage(tmp_path: Path) -> None:
    finished = call(*TINY, *WORDS, "hydra.run.dir=run", folder=tmp_path)
    assert finished.status == 0, finished
    result = Result.read(tmp_path / "run" / "result.json")
    assert result.method == "dgh"
    assert list(result.steps_by_stage) == [
        "synthesis",
        "calibration",
        "correction",
        "reconstruction",
    ]
    assert result.exports["packed"]["agreement"] == 100
    again = call(
        *TINY,
        *WORDS,
        "sources.bank.load=run/samples.safetensors",
        "hydra.run.dir=again",
        folder=tmp_path,
    )
    assert again.status == 0, again
    assert "synthesis" not in Result.read(tmp_path / "again" / "result.json").steps_by_stage


def test_features_have_no_pixels_and_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"bank=image_set does not fit model\.modality"):
        build_module(composed("method=dgh", "quantizer=lsq", *features.WORDS, "data=none"))
