"""The search of teachers' weights, against plain formulas and on members that know nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hast_lightning.errors import ConfigurationError
from hast_lightning.models.ensemble import EnsembleTeacher
from hast_lightning.stages.weigh_teachers import WeighTeachers, sign_step, weight_gradient
from hast_lightning.training.module import ZeroShotQuantization
from tests.checkpoints import content
from tests.small_runs import assert_same_end_from_everywhere, build_module, fit, small

WEIGHED = (
    "+stage@stages.weighing=weigh_teachers",
    "stages.weighing.source=bank",
    "stages.weighing.batch_size=16",
    "stages.weighing.steps=4",
    "order=[synthesis,weighing]",
)
UNTRAINED = ("+model@teachers.untrained=digits", "teachers.untrained.pretrained=false")


def test_a_step_is_the_sign_of_the_gradient_clipped_to_0_and_1() -> None:
    weights, gradient = torch.tensor([0.5, 0.995, 0.004, 0.3]), torch.tensor([3.0, -1e-9, 2.0, 0.0])
    expected = torch.tensor([0.49, 1.0, 0.0, 0.3])
    torch.testing.assert_close(sign_step(weights, gradient, 0.01), expected)


def test_weights_that_would_all_be_zero_stay() -> None:
    weights = torch.tensor([0.005, 0.01])
    assert torch.equal(sign_step(weights, torch.ones(2), 0.01), weights)
    # One that is left is enough.
    kept = sign_step(weights, torch.tensor([1.0, -1.0]), 0.01)
    torch.testing.assert_close(kept, torch.tensor([0.0, 0.02]))


def test_the_gradient_is_that_of_the_cross_entropy_of_the_normalized_mixture() -> None:
    answers, targets = torch.randn(3, 8, 5).double(), torch.randint(5, (8,))
    weights = torch.tensor([0.2, 0.9, 0.4])
    loss, gradient = weight_gradient(answers, targets, weights)

    def plain(w: list[float]) -> float:
        mixed = sum(k * z for k, z in zip(w, answers, strict=True)) / sum(w)
        return float(F.cross_entropy(mixed, targets))

    at = weights.tolist()
    assert float(loss) == pytest.approx(plain(at), abs=1e-5)
    for k in range(3):
        up, down = list(at), list(at)
        up[k] += 1e-3
        down[k] -= 1e-3
        assert float(gradient[k]) == pytest.approx((plain(up) - plain(down)) / 2e-3, abs=1e-3)
    # Only ratios count, so that along the weights themselves nothing changes.
    assert float((gradient * weights).sum()) == pytest.approx(0, abs=1e-6)


def weights_of(module: ZeroShotQuantization) -> dict[str, float]:
    assert isinstance(module.teacher, EnsembleTeacher)
    return dict(zip(module.teacher.names, module.teacher.weights.tolist(), strict=True))


def test_a_network_of_random_weights_ends_below_the_others() -> None:
    module = build_module(small("method=hast", *UNTRAINED, "+model@teachers.twin=digits", *WEIGHED))
    equal = weights_of(module)
    assert list(equal.values()) == pytest.approx([1 / 3] * 3)
    fit(module)
    found = weights_of(module)
    assert found["untrained"] < equal["untrained"]
    assert found["model"] == pytest.approx(found["twin"]) and found["model"] > equal["model"]
    # Steps of 0.01, 0.0099, ... and the student is left alone.
    assert found["untrained"] == pytest.approx(1 / 3 - sum(0.01 * 0.99**i for i in range(4)))


def test_a_size_of_0_leaves_the_weights_equal() -> None:
    still = (*WEIGHED[:-1], "order=[weighing]", "stages.weighing.lr=0")
    module = build_module(small("method=hast", *UNTRAINED, *still))
    fit(module)
    assert set(weights_of(module).values()) == {0.5}


def test_a_resumed_run_has_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    config = small("method=hast", *UNTRAINED, *WEIGHED[:-1], "order=[weighing]")
    assert_same_end_from_everywhere(config, tmp_path, build_module(config).agenda.iterations - 2)
    kept = content(tmp_path / "begun.ckpt")["state_dict"]
    teachers = [key for key in kept if key.startswith("teacher.")]
    assert teachers == ["teacher.weights"] and kept["teacher.weights"].tolist() != [0.5, 0.5]


def test_a_network_that_teaches_alone_has_nothing_to_weigh() -> None:
    with pytest.raises(ConfigurationError, match=r"stages\.weighing: one network teaches alone"):
        build_module(small("method=hast", *WEIGHED))


def test_a_source_without_hard_labels_is_refused() -> None:
    latents = (
        "source@sources.bank=latent_bank",
        "sources.bank.size=8",
        "sources.bank.batch_size=8",
    )
    with pytest.raises(ConfigurationError, match="hard labels, which a source of kind latent_bank"):
        build_module(small("method=hast", *UNTRAINED, *WEIGHED[:-1], *latents, "order=[weighing]"))


@pytest.mark.parametrize("wrong", [{"decay": 0.0}, {"lr": -1.0}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        WeighTeachers(source="bank", **wrong)  # type: ignore[arg-type]
