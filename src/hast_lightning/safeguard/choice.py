"""The student that a run hands back: of the last stage, or of the one before it went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hast_lightning.config.safeguard import (
    LEAVES,
    REFERENCE,
    SafeguardConfig,
    deciding_error,
)
from hast_lightning.core.network import PICTURES
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.runtime.ranks import gathered_objects
from hast_lightning.safeguard.closeness import Closeness, closeness
from hast_lightning.safeguard.reference import judging_leaves, judging_noise, reference_images
from hast_lightning.safeguard.states import kept_states
from hast_lightning.training.evaluation import Evaluation
from hast_lightning.training.module import ZeroShotQuantization

SMOOTH, HELD_OUT = "noise", "held_out"
"""Noise whose spectrum is that of natural images, and held-out samples; they are reported only."""


@dataclass(frozen=True)
class Choice:
    """Which student a run hands back, and why.

    Attributes:
        stage: The stage after which it was taken.
        last: The last stage that changed the student.
        judged: How close the student was to the teacher, by stage and by kind of images.
        evaluated: What an evaluation found, by stage; it came after the choice.
    """

    stage: str
    last: str
    judged: dict[str, dict[str, Closeness]] = field(default_factory=dict)
    evaluated: dict[str, Evaluation] = field(default_factory=dict)

    @property
    def warning(self) -> str:
        """Return what to say of a student that is not the last one; empty where it is."""
        if self.stage == self.last:
            return ""
        before, after = (self.judged[name][REFERENCE] for name in (self.stage, self.last))
        errors = errors_of(self.judged)
        agreement, of, advice = "", "outputs", ""
        if before.agreement is not None and after.agreement is not None:
            of, advice = "logits", "the images more steps (schedule.image_steps), "
            if after.agreement < before.agreement:
                agreement = (
                    " and its agreement with the full-precision network from "
                    f"{before.agreement:.1f} to {after.agreement:.1f} %"
                )
        return (
            f"stage {self.last} made the student worse: on images that nobody trained on the error "
            f"of its {of} went from {errors[self.stage]:.3g} to "
            f"{errors[self.last]:.3g}{agreement}; handed "
            f"back is the student after stage {self.stage}. Give {advice}stages.{self.last} a "
            "lower learning rate, or leave that stage out of order"
        )


def choose(
    module: ZeroShotQuantization,
    folder: Path,
    options: SafeguardConfig,
    evaluate: Callable[[], Evaluation | None],
    calibrated: Evaluation | None = None,
) -> Choice:
    """Judge the student after every stage, and leave the chosen one in the module.

    All ranks come to the same choice, that of rank 0. Labels are looked at after it was made.

    Args:
        module: After its last step.
        folder: Of the run, where students were kept.
        options: How they are judged.
        evaluate: Measures the module's student; the last time the chosen one.
        calibrated: What it found right behind the stage that calibrates, if it is known.
    """
    legs = [leg for leg in module.agenda.legs if leg.begins_anew or leg.trains_student]
    # Students of before have other bits or other ranges, and none of them was kept.
    anew = [number for number, leg in enumerate(legs) if leg.begins_anew]
    legs = legs[max(anew, default=0) :]
    last = legs[-1].stage
    earlier = kept_states(folder, {leg.stage: leg.total for leg in legs[:-1]})
    # Machines that do not share the folder cannot all load what the first has written.
    alike = len(set(gathered_objects(tuple(earlier)))) == 1
    # A single stage has nothing to be chosen from, and is judged so that runs can be compared.
    if not (options.enabled and alike and (earlier or len(legs) == 1)):
        return Choice(last, last, evaluated=_evaluated(evaluate, last))
    student = module.student
    final = {name: value.detach().clone() for name, value in student.state_dict().items()}
    images, values = judging_images(module, options), module.teacher.pretrained.values
    states: dict[str, Any] = {**earlier, last: final}
    judged: dict[str, dict[str, Closeness]] = {}
    for stage, state in states.items():
        _load(module, state)
        judged[stage] = {
            kind: closeness(module.teacher, student, inputs, values=values)
            for kind, inputs in images.items()
        }
    choice = gathered_objects(preferred(errors_of(judged), options.tolerance))[0]
    calibrating = [leg.stage for leg in module.agenda.legs if leg.calibrates]
    evaluated: dict[str, Evaluation] = {}
    if calibrated is not None and len(calibrating) == 1 and calibrating[0] in {*states} - {choice}:
        evaluated = {calibrating[0]: calibrated}
    for stage in sorted(states, key=lambda stage: stage == choice):
        if stage not in evaluated:
            _load(module, states[stage])
            evaluated |= _evaluated(evaluate, stage)
    return Choice(choice, last, judged, evaluated)


def _evaluated(evaluate: Callable[[], Evaluation | None], stage: str) -> dict[str, Evaluation]:
    found = evaluate()
    return {} if found is None else {stage: found}


def _load(module: ZeroShotQuantization, state: Path | Mapping[str, Tensor]) -> None:
    """Give the student a state, or that of a file."""
    loaded: Mapping[str, Tensor] = (
        torch.load(state, map_location="cpu", weights_only=True)
        if isinstance(state, Path)
        else state
    )
    module.student.load_state_dict(loaded)


def errors_of(judged: Mapping[str, Mapping[str, Closeness]]) -> dict[str, float]:
    """Return the error by which each stage's student is judged."""
    return {
        stage: deciding_error({kind: each.error for kind, each in found.items()})
        for stage, found in judged.items()
    }


def preferred(errors: Mapping[str, float], tolerance: float) -> str:
    """Return the stage whose student is to be handed back.

    The last one, but for an earlier one whose error is smaller by more than a share of it. Of
    several such, that with the smallest error.

    Args:
        errors: By stage in their order.
        tolerance: The share.
    """
    *_, last = errors
    best = min(errors, key=lambda stage: errors[stage])
    return best if errors[best] < (1 - tolerance) * errors[last] else last


def judging_images(module: ZeroShotQuantization, options: SafeguardConfig) -> dict[str, Tensor]:
    """Return the images that students are judged by, by kind.

    All are reported; the choice is made on those of :data:`DECIDING`.
    """
    reference = reference_images(module.teacher, options.images, options.iterations)
    images = {REFERENCE: reference}
    network = module.teacher.pretrained
    if not network.denoises:  # to a network that denoises, such noise is nothing that it meets
        generator = torch.Generator().manual_seed(1)
        noise = network.inputs_of(judging_noise(network, options.images, generator))
        images[SMOOTH] = noise.to(reference.device)
    if network.modality == PICTURES and len(network.input_shape) == 3:
        images[LEAVES] = judging_leaves(network, options.images).to(reference.device)
    # A bank may keep none from training, or may not be full.
    with suppress(ConfigurationError, DataError):
        images[HELD_OUT] = module.source.held_out(options.images).inputs
    return {kind: module.layout(inputs) for kind, inputs in images.items()}
