"""SADAG's refinement: gradients by autograd against what stands in for them, and its pitfalls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters
from torch.optim import Adam

from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.sadag import (
    KeptLatentBank,
    Refine,
    StandIn,
    crowding,
    flatness,
    likeness,
    neighbors,
)
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.records.result import Result
from hast_lightning.training.module import ZeroShotQuantization
from tests.command_line import TINY, call
from tests.small_runs import assert_same_end_from_everywhere, build_module, fit, small

WORDS = ("method=sadag_style", "quantizer=mse")
REFINED = "order=[synthesis,calibration,reconstruction,refinement]"


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stand_in(count: int, seed: int) -> StandIn:
    return StandIn(numbers(count, 5, seed=seed), numbers(count, 3, seed=seed + 100))


def built(*words: str) -> tuple[ZeroShotQuantization, KeptLatentBank, Refine]:
    module = build_module(small(*WORDS, "data.holdout=0", *words))
    bank, stage = module.sources["bank"], module.stages["refinement"]
    assert isinstance(bank, KeptLatentBank)
    assert isinstance(stage, Refine)
    return module, bank, stage


# -- Formulas ---------------------------------------------------------------------------------


def test_likeness_is_the_cosine_of_the_gradients_of_the_last_layer() -> None:
    """By autograd, of half the squared error of each image's logits."""
    features, targets = numbers(6, 5), numbers(6, 3, seed=1)
    last = nn.Linear(5, 3, bias=False)
    gradients = []
    for feature, target in zip(features, targets, strict=True):
        loss = 0.5 * (last(feature) - target).square().sum()
        gradients.append(torch.autograd.grad(loss, last.weight)[0].flatten())
    expected = F.cosine_similarity(gradients[0], torch.stack(gradients), dim=1)
    one = StandIn(features, targets - last(features).detach())
    torch.testing.assert_close(likeness(one, one)[0], expected, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(likeness(one, one), likeness(one, one).float())
        torch.testing.assert_close(likeness(one, one)[0], expected, rtol=1e-4, atol=1e-6)


def test_flatness_is_the_mean_over_images_of_their_likeness_to_their_own_neighbor() -> None:
    one, other = stand_in(4, 0), stand_in(4, 1)
    expected = 0.0
    for index in range(4):
        cosines = [
            F.cosine_similarity(a[index], b[index], dim=0) for a, b in zip(one, other, strict=True)
        ]
        expected += float(cosines[0] * cosines[1]) / 4
    assert float(flatness(one, other)) == pytest.approx(expected, abs=1e-6)
    assert float(flatness(one, one)) == pytest.approx(1)


def test_crowding_is_the_mean_of_the_likest_other_image_of_this_batch_and_the_earlier_ones() -> (
    None
):
    one, earlier = stand_in(4, 0), stand_in(3, 1)
    every = StandIn(*(torch.cat(both) for both in zip(one, earlier, strict=True)))
    expected = 0.0
    for i in range(4):
        likest = 0.0
        for j in range(7):
            if j != i:
                cosines = [F.cosine_similarity(each[i], each[j], dim=0) for each in every]
                likest = max(likest, abs(float(cosines[0] * cosines[1])))
        expected += likest / 4
    assert float(crowding(one, earlier)) == pytest.approx(expected, abs=1e-6)


def test_an_image_is_not_crowded_by_itself_but_by_a_copy_of_an_earlier_batch() -> None:
    alone = StandIn(torch.eye(2), torch.ones(2, 2))
    nothing = StandIn(torch.zeros(0, 2), torch.zeros(0, 2))
    assert float(crowding(alone, nothing)) == 0
    copy = StandIn(alone.features[:1], -alone.errors[:1])
    assert float(crowding(alone, copy)) == pytest.approx(0.5)


def mapped(latents: Tensor) -> StandIn:
    """A nonlinear network in place of generator, teacher and student."""
    return StandIn(torch.tanh(latents @ numbers(4, 5)), torch.sin(latents @ numbers(4, 3, seed=2)))


def test_neighbors_are_at_the_radius_down_the_gradient_of_the_products() -> None:
    latents = numbers(6, 4, seed=5).requires_grad_()
    found = neighbors(latents, mapped(latents), 0.7)
    distances = (found - latents).norm(dim=1)
    torch.testing.assert_close(distances, torch.full((6,), 0.7))
    for index in range(6):
        z = latents[index : index + 1].detach().requires_grad_()
        features, errors = mapped(z)
        product = (features * features.detach()).sum() * (errors * errors.detach()).sum()
        (gradient,) = torch.autograd.grad(product, z)
        expected = z - 0.7 * gradient / gradient.norm()
        torch.testing.assert_close(found[index : index + 1], expected, rtol=1e-4, atol=1e-5)


def test_normalized_vectors_would_have_no_direction() -> None:
    """The pitfall: the product of a unit vector with itself is 1 wherever it points."""
    latents = numbers(6, 4, seed=5).requires_grad_()
    one = mapped(latents)
    units = [F.normalize(each, dim=1) for each in one]
    products = [(each * each.detach()).sum(dim=1) for each in units]
    (gradient,) = torch.autograd.grad((products[0] * products[1]).sum(), latents)
    assert float(gradient.abs().max()) < 1e-6


# -- The stage --------------------------------------------------------------------------------


def test_images_are_those_of_the_latents_and_generators_that_are_kept() -> None:
    module, bank, _ = built(REFINED)
    fit(module)
    assert not torch.equal(bank.kept_latents[0], bank.kept_latents[1])
    images = bank.images.split(bank.batch_size)
    for latents, weights, made in zip(bank.kept_latents, bank.kept_weights, images, strict=True):
        with torch.no_grad():
            vector_to_parameters(weights, bank.generator.parameters())
            torch.testing.assert_close(bank.generator(latents), made, rtol=1e-4, atol=1e-5)


def test_refinement_moves_every_batch_a_little() -> None:
    before, old, _ = built(REFINED)
    kept: list[Tensor] = []
    stage = before.stages["refinement"]
    whole_step = stage.step

    def step(bench: Any, index: int) -> Any:
        if index == 0:
            kept.extend((old.kept_latents.clone(), old.kept_weights.clone()))
        return whole_step(bench, index)

    stage.step = step  # type: ignore[method-assign]
    fit(before)
    for was, now in zip(kept, (old.kept_latents, old.kept_weights), strict=True):
        distances = (now - was).flatten(1).abs().amax(dim=1)
        assert bool((distances > 0).all())
        # Adam's steps are as long as the rate: three of them at 1e-5 and 1e-4.
        assert float(distances.max()) <= 3 * (1e-5 if was is kept[0] else 1e-4) * 1.01


def test_what_later_batches_will_leave_is_not_read() -> None:
    module, _, stage = built(REFINED)
    stage.features.fill_(torch.nan)
    stage.errors.fill_(torch.nan)
    fit(module)
    assert bool(stage.features.isfinite().all() and stage.errors.isfinite().all())


def test_the_student_begins_anew_behind_it() -> None:
    """What the student learned of the images before is gone: GENIE-M follows anew."""
    module, _, _ = built(REFINED)
    fresh = {name: value.clone() for name, value in module.student.state_dict().items()}
    fit(module)
    assert not module.ranges_frozen
    for name, value in module.student.state_dict().items():
        torch.testing.assert_close(value, fresh[name], rtol=0, atol=0, equal_nan=True)


def test_bits_that_a_search_chose_and_biases_that_came_later_stay_behind_it() -> None:
    module, _, stage = built(REFINED)
    (_, layer), *_ = quantized_layers(module.student)
    layer.weight_quantizer.change_bits(8, layer.weight)
    assert layer.bias is None
    layer.bias = nn.Parameter(torch.ones(len(layer.weight)))
    stage.end(module.bench)
    assert layer.weight_quantizer.bits == 8
    assert not layer.bias.any()


def test_the_rate_of_refining_is_its_own() -> None:
    _, bank, stage = built(REFINED, "sources.bank.falls=cosine")
    optimizer = Adam([nn.Parameter(torch.zeros(1))], stage.lr)
    bank.step_plateau(1.0, optimizer, stage.min_lr)
    assert optimizer.param_groups[0]["lr"] == stage.lr


def test_the_student_is_left_alone_while_images_are_refined() -> None:
    module, _, stage = built(REFINED)
    states: list[dict[str, Tensor]] = []
    end = stage.end

    def remember(bench: Any) -> None:
        states.append({name: value.clone() for name, value in bench.student.state_dict().items()})

    def begin(bench: Any) -> None:
        bench.student.zero_grad()
        remember(bench)

    def remember_and_end(bench: Any) -> None:
        assert all(parameter.grad is None for parameter in bench.student.parameters())
        remember(bench)
        end(bench)

    stage.begin, stage.end = begin, remember_and_end  # type: ignore[method-assign]
    fit(module)
    first, last = states
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("source@sources.bank=latent_bank",),
            "stages.refinement.source=bank: refine needs the latents that a kept_latent_bank has "
            "of images of its own run",
        ),
        (
            ("order=[synthesis,refinement]",),
            "order: refinement looks at the student, which no stage before it calibrates",
        ),
        (
            ("order=[synthesis,calibration,refinement,final_reconstruction]",),
            "order: final_reconstruction rebuilds the student, which no stage before it calibrates",
        ),
    ],
)
def test_what_does_not_fit_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        build_module(small(*WORDS, *words))
    assert str(refused.value) == message


def test_a_run_that_is_resumed_ends_with_the_same_images_and_student(tmp_path: Path) -> None:
    """In the first batch, between two, in the second, and behind the refinement."""
    module, _, _ = built()
    before = sum(list(module.agenda.stages.values())[:3])
    at = [before + steps for steps in (1, 3, 5, 6)]
    assert_same_end_from_everywhere(module.config, tmp_path, *at)


def test_two_steps_of_every_stage_without_any_image_of_anybody(tmp_path: Path) -> None:
    finished = call(*TINY, *WORDS, "data=none", "hydra.run.dir=run", folder=tmp_path)
    assert finished.status == 0, finished
    result = Result.read(tmp_path / "run" / "result.json")
    assert result.method == "sadag_style"
    assert list(result.steps_by_stage) == [
        "synthesis",
        "calibration",
        "reconstruction",
        "refinement",
        "recalibration",
        "final_reconstruction",
    ]
    assert result.exports["packed"]["agreement"] == 100
