"""What is after Co-Boosting: whose turn it is, the pool, and runs with several teachers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.methods.coboosting import Boost, HardPool, PixelGenerator, turn
from hast_lightning.models.ensemble import EnsembleTeacher
from hast_lightning.models.zoo import load
from hast_lightning.quantization.fake_quant import activation_quantizers, quantized_layers
from hast_lightning.runs import pipeline
from tests.checkpoints import content
from tests.composition import composed
from tests.features import loaded
from tests.small_runs import assert_same_end_from_everywhere, build_module, fit, small

OTHER = ("+model@teachers.untrained=digits", "teachers.untrained.pretrained=false")
FEW = (
    "method=coboosting_style",
    *("sources.pool.size=24", "sources.pool.batch_size=8", "sources.pool.iterations=2"),
    "schedule.image_steps=1",
)


FLOAT = (
    "method=coboosting",
    *("sources.pool.size=24", "sources.pool.batch_size=8", "sources.pool.iterations=2"),
)


@pytest.mark.parametrize("method", ["coboosting", "coboosting_style"])
def test_constants_are_those_of_the_released_code(method: str) -> None:
    config = composed(f"method={method}", "schedule=released")
    pool, boosting = config.sources["pool"], config.stages["boosting"]
    assert isinstance(pool, HardPool) and isinstance(boosting, Boost)
    assert (pool.size, pool.batch_size, pool.iterations) == (25_600, 128, 30)
    made = boosting.synthesis.terms
    hard = made["hard_cross_entropy"]
    assert (hard.weight, hard.gamma, hard.detached) == (1, 1, True)
    # Nine times the divergence at temperature 3, and 16 times that at temperature 4.
    assert (made["adversarial"].weight, made["adversarial"].temperature) == (1, 3)
    assert made["bns"].weight == 0
    learned = boosting.distillation
    kd = learned.terms["kd"]
    assert (kd.weight, kd.temperature, kd.reduction) == (1, 4, "batchmean")
    diversity = learned.transforms["diversity"]
    assert (diversity.eps, diversity.temperature) == (8 / 255, 4)
    rates = learned.optimizer
    assert (rates.name, rates.lr, rates.momentum, rates.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (rates.clip_norm, learned.learning_rate.policy) == (10, "cosine")
    assert rates.nesterov == (method == "coboosting_style")
    assert (boosting.weighing.lr, boosting.weighing.decay) == (0.01, 0.99)


# -- whose turn ---------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 2, 30])
def test_turns_are_those_of_plain_loops(iterations: int) -> None:
    expected = []
    for epoch in range(6):
        expected += [(epoch, "synthesis", step) for step in range(iterations)]
        expected += [(epoch, "weighing", step) for step in range(epoch)]
        expected += [(epoch, "distillation", step) for step in range(epoch + 1)]
    assert [turn(index, iterations) for index in range(len(expected))] == expected
    assert len(expected) == 6 * iterations + 6**2


def test_a_long_run_has_no_rounding() -> None:
    epoch = 10**9
    first = epoch * 30 + epoch**2
    assert turn(first, 30) == (epoch, "synthesis", 0)
    assert turn(first - 1, 30) == (epoch - 1, "distillation", epoch - 1)


# -- the pool -----------------------------------------------------------------------------


def pool(holdout: float = 0.0, **settings: object) -> HardPool:
    torch.manual_seed(0)
    given: dict[str, object] = {"size": 24, "batch_size": 8, "iterations": 3, "latent_dim": 12}
    built = HardPool(**{**given, **settings})  # type: ignore[arg-type]
    built.build(Site(load(small().model), holdout, 1, "sources.pool"))
    return built


def improve(source: HardPool, *losses: float) -> list[Tensor]:
    """Take steps that report these losses, whatever the images; return what was proposed."""
    optimizers, proposed = source.optimizers(), []
    for loss in losses:
        batch = source.propose()
        proposed.append(batch.inputs.detach().clone())
        optimizers["adam"].zero_grad()
        batch.inputs.square().mean().backward()
        optimizers["adam"].step()
        source.improved(loss, optimizers)
    return proposed


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 13)])
def test_the_generator_makes_pixels_of_any_size(shape: tuple[int, int, int]) -> None:
    pixels = PixelGenerator(12, shape)(torch.randn(9, 12)).detach()
    assert pixels.shape == (9, *shape)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1


def test_the_weights_of_a_new_generator_are_those_of_the_release() -> None:
    torch.manual_seed(0)
    generator = PixelGenerator(256, (3, 32, 32))
    weight = generator.project.weight
    assert float(weight.detach().mean().abs()) < 1e-3
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    norm = generator.get_submodule("maps.1").weight
    assert float(norm.mean()) == pytest.approx(1, abs=0.01) and float(norm.std()) < 0.03
    assert all(not value.any() for name, value in generator.named_parameters() if "bias" in name)


def test_the_images_of_the_lowest_loss_join_in_8_bits() -> None:
    source = pool()
    proposed = improve(source, 0.3, 0.1, 0.2)
    assert source.filled == 8
    stored = source.images[:8]
    levels = 255 * (stored * source.std + source.mean)
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert float((stored - proposed[1]).abs().max()) <= 1 / 255 + 1e-6  # half a level, times 2
    assert float((stored - proposed[2]).abs().max()) > 1 / 255
    assert math.isinf(source._lowest)


def test_every_batch_has_latents_labels_and_a_generator_of_its_own() -> None:
    source = pool(iterations=1)
    before = {name: value.detach().clone() for name, value in source.named_parameters()}
    labels = source.active_labels.clone()
    optimizers = source.optimizers()
    source.propose().inputs.sum().backward()
    optimizers["adam"].step()
    source.improved(1.0, optimizers)
    assert torch.equal(source.labels[:8], labels) and not torch.equal(source.active_labels, labels)
    assert not optimizers["adam"].state
    kept = [n for n, value in source.named_parameters() if torch.equal(value, before[n])]
    assert all(name.endswith("bias") for name in kept)


def test_a_long_gradient_is_shortened_in_the_step() -> None:
    source = pool(clip_norm=0.5)
    (1e3 * source.propose().inputs.square().sum()).backward()
    source.optimizers()["adam"].step()
    squares = [p.grad.square().sum() for p in source.parameters() if p.grad is not None]
    assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(0.5, rel=1e-4)


def test_a_pass_gives_every_image_that_has_joined_once() -> None:
    source = pool()
    for batches in (1, 2, 3):
        improve(source, 1.0, 1.0, 1.0)
        found = torch.cat([source.sample(8).inputs for _ in range(batches)])
        assert sorted(found.flatten(1).sum(1).tolist()) == pytest.approx(
            sorted(source.images[: 8 * batches].flatten(1).sum(1).tolist())
        )


def test_earlier_images_are_those_before_the_new_batch_in_an_order_of_their_own() -> None:
    source = pool()
    for _ in range(3):
        improve(source, 1.0, 1.0, 1.0)
    state = torch.random.get_rng_state()
    parts = [source.earlier(2, number) for number in (0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    sums = torch.cat([part.inputs for part in parts]).flatten(1).sum(1)
    wanted = source.images[:16].flatten(1).sum(1)
    assert not torch.equal(sums, wanted)
    torch.testing.assert_close(sums.sort().values, wanted.sort().values)


def test_a_share_of_every_batch_is_held_out() -> None:
    source = pool(holdout=0.25)
    assert (source.trained_on, source.batches) == (6, 3)
    with pytest.raises(DataError, match="not synthesized yet"):
        source.held_out(4)
    for _ in range(3):
        improve(source, 1.0, 1.0, 1.0)
    held = source.held_out(100).inputs
    places = [6, 7, 14, 15, 22, 23]
    assert torch.equal(held, source.images[places])
    shown = torch.cat([source.sample(6).inputs for _ in range(6)])
    shown = torch.cat([shown, *(source.earlier(2, n).inputs for n in (0, 1))])
    shown = torch.cat([shown, source.collect(100).inputs])
    same = (shown[:, None] == held[None]).flatten(2).all(2)
    assert not same.any()
    assert len(torch.unique(shown, dim=0)) == 18


def test_what_it_cannot_make_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="hard_pool makes pixels"):
        HardPool().build(Site(loaded(), key="sources.pool"))
    with pytest.raises(ConfigurationError, match=r"trainer\.devices=2"):
        HardPool().build(Site(load(small().model), processes=2, key="sources.pool"))
    with pytest.raises(ConfigurationError, match="clip_norm"):
        HardPool(clip_norm=0)


# -- runs ---------------------------------------------------------------------------------


def test_the_weights_move_over_earlier_images_alone_and_not_in_the_first_epoch() -> None:
    module = build_module(small(*FEW, *OTHER))
    stage, teacher = module.stages["boosting"], module.teacher
    assert isinstance(stage, Boost) and isinstance(teacher, EnsembleTeacher)
    moved: list[tuple[int, int, float]] = []
    weigh = stage.weighing.weigh

    def watched(bench, batch, size):  # type: ignore[no-untyped-def]
        pool = bench.sources["pool"]
        assert isinstance(pool, HardPool)
        newest = pool.images[pool.filled - 8 : pool.filled]
        assert not (batch.inputs[:, None] == newest[None]).flatten(2).all(2).any()
        moved.append((pool.filled // 8, len(batch.inputs), size))
        return weigh(bench, batch, size)

    vars(stage.weighing)["weigh"] = watched
    fit(module)
    # Epoch 1 has one batch behind it, epoch 2 two; steps fall with the epochs.
    sizes = [0.01 * 0.99, 0.01 * 0.99**2, 0.01 * 0.99**2]
    assert [pool for pool, _, _ in moved] == [2, 3, 3]
    assert [size for _, _, size in moved] == pytest.approx(sizes)
    assert teacher.weights.tolist() != [0.5, 0.5]


def test_steps_of_the_student_are_counted_and_no_others() -> None:
    module = build_module(small(*FEW, *OTHER))
    before = module.agenda.iterations - 3 * 2 - 9
    assert module.agenda.student_steps(before) == 0
    counts = [module.agenda.student_steps(before + done) for done in range(16)]
    assert counts == [0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 4, 5, 6]


def test_the_student_sees_moved_images_only_and_rates_follow_the_epochs() -> None:
    config = small(*FEW, *OTHER, "stages.boosting.distillation.optimizer.lr=0.5")
    module = build_module(config)
    rates = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_, **__):  # type: ignore[no-untyped-def]
            scalars = pl_module.outcome.scalars
            if "distillation/learning_rate" in scalars:
                rates.append(scalars["distillation/learning_rate"])
                assert list(pl_module.outcome.answers) == [""]

    fit(module, [Rates()])
    cosine = [0.25 * (1 + math.cos(math.pi * epoch / 3)) for epoch in (0, 1, 1, 2, 2, 2)]
    assert rates == pytest.approx(cosine)


def test_it_is_resumed_in_every_phase_to_the_same_end(tmp_path: Path) -> None:
    config = small(*FEW, *OTHER)
    total = build_module(config).agenda.iterations
    # In the middle of synthesis, between weighing steps, and behind the first student step.
    at = [total - 15 + done for done in (1, 11, 13)]
    assert_same_end_from_everywhere(config, tmp_path, *at)
    assert "teacher.weights" in content(tmp_path / "last.ckpt")["state_dict"]


def test_a_network_that_teaches_alone_trains_its_student() -> None:
    module = build_module(small(*FEW))
    fit(module)
    assert module.agenda.student_steps(module.iteration) == 6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("stages.boosting.weighing.source=bank",), "the phases share one source"),
        (
            [f"stages.boosting.{name}.source=bank" for name in ("synthesis", "weighing")]
            + ["stages.boosting.distillation.source=bank"],
            "boost needs a hard_pool that grows in this run",
        ),
    ],
)
def test_phases_that_do_not_fit_are_refused(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        build_module(small(*FEW, *OTHER, *words))


# -- a new student in floating point ------------------------------------------------------


def statistics(student: nn.Module) -> list[Tensor]:
    """Running mean and variance of every BatchNorm."""
    found = student.state_dict().items()
    return [value.clone() for name, value in found if "running" in name]


def test_a_new_student_learns_its_batch_norms_in_its_own_steps_alone() -> None:
    module = build_module(small(*FLOAT, *OTHER))
    assert not quantized_layers(module.student) and not activation_quantizers(module.student)
    seen = [statistics(module.student)]
    moved: list[tuple[str, bool]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_, **__):  # type: ignore[no-untyped-def]
            stage = module.stages["boosting"]
            assert isinstance(stage, Boost)
            assert not any(each.training for each in module.student.modules())
            now = statistics(module.student)
            changed = [not torch.equal(*pair) for pair in zip(now, seen[-1], strict=True)]
            assert any(changed) == all(changed)
            moved.append((stage._phase, all(changed)))
            seen.append(now)

    fit(module, [Watch()])
    assert len(moved) == 3 * 2 + 9
    assert all(changed == (phase == "distillation") for phase, changed in moved)
    counts = [v for n, v in module.student.state_dict().items() if n.endswith("batches_tracked")]
    assert counts and all(int(value) == 6 for value in counts)


def test_a_new_student_begins_with_weights_of_the_seed_and_no_teachers() -> None:
    first, other = (build_module(small(*FLOAT, *OTHER, f"seed={seed}")) for seed in (0, 1))
    alone = build_module(small(*FLOAT))
    weights = [dict(m.student.named_parameters())["conv1.weight"] for m in (first, alone, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], first.teacher.graph_module.conv1.weight)


def test_a_new_student_is_resumed_in_every_phase_to_the_same_end(tmp_path: Path) -> None:
    # In the middle of synthesis, between weighing steps, and behind the first student step.
    assert_same_end_from_everywhere(small(*FLOAT, *OTHER), tmp_path, 1, 11, 13)
    assert any("running_var" in name for name in content(tmp_path / "last.ckpt")["state_dict"])


def test_the_result_of_a_new_student_has_nothing_before_and_files_that_agree(
    tmp_path: Path,
) -> None:
    formats = "export.formats=[packed,onnx,program]"
    config = small(*FLOAT, *OTHER, formats)
    result = pipeline.run(config, tmp_path / "run", "typed")
    assert result is not None
    assert (result.weight_bits, result.activation_bits, result.bits) == (32, 32, "float")
    assert result.quantized_bytes == result.teacher_bytes
    assert result.calibrated_top1 is result.calibrated_agreement is None
    # Nothing that was there before its training can be handed back.
    assert list(result.judged) == ["boosting"] and result.kept_stage == "boosting"
    assert result.kept_top1 == result.quantized_top1
    for record in result.exports.values():
        assert (record["agreement"], record["images"]) == (100, result.evaluated_images)
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "A new network in floating point, trained from scratch." in report
    assert "Rounding" not in report
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "A new network like digits_resnet, trained in floating point without data." in card


def test_a_quantized_student_is_told_what_it_lacks() -> None:
    told = "which no stage before it calibrates, .*coboosting_style; quantizer.bits=32 trains a new"
    with pytest.raises(ConfigurationError, match=told):
        build_module(small(*FLOAT, "quantizer.bits=4"))
