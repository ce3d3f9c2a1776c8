"""Every checkpoint of a run, of every kind of stage, leads to the same end, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from hast_lightning.config import Config
from hast_lightning.core.batch import Batch, Needs, Seen
from hast_lightning.core.network import Network
from hast_lightning.core.stage import Bench, Hook, Stepper
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.stages.calibrate import Calibrate
from hast_lightning.stages.distill import Distill
from hast_lightning.stages.synthesize import Synthesize
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint
from tests.checkpoints import content
from tests.small_methods import METHODS, small_method
from tests.small_runs import (
    ALTERNATING,
    ALTERNATING_BANK,
    GENERATOR,
    OWN_CALIBRATION,
    assert_same_end_from_everywhere,
    build_module,
    fit,
    small,
)

pytestmark = pytest.mark.usefixtures("undisturbed_torch")


RECONSTRUCT = (
    "method=reconstruct",
    "quantizer=lsq",
    "stages.correction.samples=16",
    "stages.reconstruction.samples=16",
    "stages.reconstruction.iterations=2",
    "stages.reconstruction.batch_size=8",
)
ADAPTIVE = (
    *RECONSTRUCT,
    "quantizer=mse",
    "rounding@quantizer.rounding=adaptive",
    "stages.reconstruction.trains=rounding",
)
SEARCH = (
    "method=mixed_bits",
    "quantizer=lsq",
    "stages.search.search=pareto",
    "stages.search.samples=16",
    "stages.search.bins=4",
    "stages.search.survivors=2",
    "stages.search.kept=1",
    "stages.correction.samples=16",
)
INTRAQ = ("method=intraq", "stages.synthesis.terms.soft_target.lowest=0.1")
AIT = ("method=ait", "stages.alternation.distillation.hook.first_steps=2")
PLACES = (
    "+term@stages.distillation.terms.places=adaptive_attention",
    "stages.distillation.terms.places.interval=1",
)


@pytest.mark.parametrize(
    ("words", "at"),
    [
        ((), ()),
        ((*OWN_CALIBRATION, "quantizer=lsq"), (2, 6, 7, 8, 9)),
        (GENERATOR, (3, 6, 8)),
        (ALTERNATING, ()),
        (("trainer.precision=16-mixed",), (7, 9)),
        (RECONSTRUCT, (8, 9, 10, 12, 13, 14)),
        (ADAPTIVE, (9, 11, 13)),
        (SEARCH, (9, 15, 16, 17, 18, 19)),
        (("method=texq_style",), (2, 3, 5, 9, 12)),
        (("method=tdg_style", "sources.generator.every=1"), (2, 3, 4)),
        (("method=dqdg_style",), (2, 3, 4)),
        (("method=hast_near_grid",), (9, 10)),
        (PLACES, (9, 10)),
        # In the first batch, in the second, and behind synthesis.
        (INTRAQ, (2, 4, 7)),
        (AIT, (3,)),
        pytest.param(ALTERNATING_BANK, (), marks=pytest.mark.slow),
    ],
    ids=[
        "hast",
        "own_calibration",
        "generator",
        "alternating",
        "float16",
        "reconstruct",
        "adaptive",
        "search",
        "texq_style",
        "tdg_style",
        "dqdg_style",
        "hast_near_grid",
        "places",
        "intraq",
        "ait",
        "alternating_bank",
    ],
)
def test_a_run_that_goes_on_ends_as_it_would_have(
    words: tuple[str, ...], at: tuple[int, ...], tmp_path: Path
) -> None:
    assert_same_end_from_everywhere(small(*words), tmp_path, *at)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_was_killed_ends_as_it_would_have(method: str, tmp_path: Path) -> None:
    config = small_method(method, tmp_path)
    ends = list(accumulate(build_module(config).agenda.stages.values()))
    total = ends[-1]
    # Between any two stages, and in the middle of the last.
    middle = (total + (ends[-2] if len(ends) > 1 else 0)) // 2
    at = sorted({*ends[:-1], middle} - {0, total})
    assert_same_end_from_everywhere(config, tmp_path, *at)


def test_between_two_stages_that_train_one_student(tmp_path: Path) -> None:
    config = small(*OWN_CALIBRATION)
    distillation = config.stages["distillation"]
    assert isinstance(distillation, Distill)
    config.stages["again"] = Distill(
        source="bank",
        steps=2,
        batch_size=4,
        terms=distillation.terms,
        optimizer=distillation.optimizer,
        learning_rate=distillation.learning_rate,
    )
    # Images that are improved again, after a stage whose checkpoints do not use their optimizer.
    synthesis = config.stages["synthesis"]
    assert isinstance(synthesis, Synthesize)
    config.stages["more"] = Synthesize(source="bank", steps=2, terms=synthesis.terms)
    config.order = ["synthesis", "calibration", "distillation", "more", "again"]
    assert_same_end_from_everywhere(config, tmp_path, 6, 8, 10, 11, 12, 13)


# --- parts with state of their own -----------------------------------------------------------


class Growing(Term):
    """A loss that grows with every call."""

    def bind(self, teacher: Network, student: Network) -> Needs:
        self.register_buffer("calls", torch.zeros(()))
        return Needs(student=())

    def forward(self, seen: Seen) -> Tensor:
        self.calls += 1
        assert seen.student is not None
        return self.calls * seen.student.logits.square().mean()


class Pulling(Term):
    """Pulls images towards a moving mean of them."""

    def bind(self, teacher: Network, student: Network) -> Needs:
        self.register_buffer("mean", torch.zeros(teacher.pretrained.input_shape))
        return Needs()

    def forward(self, seen: Seen) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(seen.batch.inputs.mean(0), 0.5)
        return (seen.batch.inputs - self.mean).square().mean()


class Brightening(Transform):
    """Adds more with every batch."""

    def bind(self, teacher: Network, student: Network) -> None:
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        self.batches += 1
        return batch._replace(inputs=batch.inputs + 0.01 * self.batches)


@dataclass(eq=False, repr=False, kw_only=True)
class Damping(Hook):
    """Shortens the gradients the more, the later the step."""

    base: float = 0.5

    def bind(self, bench: Bench) -> None:
        self.register_buffer("factor", torch.ones(()))

    def forward(self, student: fx.GraphModule, stepper: Stepper, rate: float) -> dict[str, float]:
        self.factor *= self.base
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter.grad *= self.factor
        return {"damping": float(self.factor)}


def with_state(config: Config) -> Config:
    """Return the configuration with a part that has state wherever one may stand."""
    synthesis, calibration, distillation = (config.stages[name] for name in config.order)
    assert isinstance(synthesis, Synthesize)
    assert isinstance(calibration, Calibrate)
    assert isinstance(distillation, Distill)
    for stage in (synthesis, calibration):
        stage.terms["pulling"] = Pulling()
        stage.transforms["brightening"] = Brightening()
    distillation.terms["growing"] = Growing(weight=0.01)
    distillation.transforms["brightening"] = Brightening()
    distillation.hook = Damping()
    return config


def test_what_terms_transforms_and_hooks_hold_is_in_checkpoints(tmp_path: Path) -> None:
    config = with_state(small())
    assert_same_end_from_everywhere(config, tmp_path, 2, 6, 7, 8, 9, 10)
    state = content(tmp_path / "last.ckpt")["state_dict"]
    held = {key: value for key, value in state.items() if key.startswith("stage_")}
    endings = {key.rpartition(".")[2] for key in held}
    assert endings == {"mean", "batches", "calls", "factor"}
    # Six synthesis steps, two of calibration and three of the student.
    assert sorted(float(v) for k, v in held.items() if k.endswith("batches")) == [2, 3, 6]
    # The clean batch and the promoted one.
    assert [float(v) for k, v in held.items() if k.endswith("calls")] == [6]
    assert [float(v) for k, v in held.items() if k.endswith("factor")] == [0.125]


def test_a_checkpoint_that_lacks_what_a_part_holds_is_no_checkpoint_of_the_run(
    tmp_path: Path,
) -> None:
    last = tmp_path / "last.ckpt"
    fit(build_module(small()), [LastCheckpoint(last, every_n_steps=100)])
    with pytest.raises(RuntimeError, match=r"Missing key.*growing|Missing key.*calls"):
        fit(build_module(with_state(small())), checkpoint=last)


def test_the_parts_of_the_configuration_stay_as_they_are() -> None:
    config = with_state(small())
    fit(build_module(config))
    held: list[Any] = [*config.stages.values(), config.stages["distillation"].terms["growing"]]
    assert not any(part.state_dict() for part in held)
