"""What keys and options of versions before 0.2 are called now."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "artefact": "artifact",
    "run": "order, a list of stages, beside evaluate=..., report=... and export=...",
    "synthesis": "sources, stages.synthesis and stages.calibration, which method=... fills",
    "synthesis.source": "the group source@sources.bank",
    "synthesis.load": "sources.bank.load",
    "synthesis.bank": "sources.bank",
    "synthesis.generator": "sources.calibration, and sources.generator of methods that alternate",
    "synthesis.images": "sources.bank with source@sources.bank=images",
    "synthesis.bns_weight": "stages.synthesis.terms.bns.weight",
    "synthesis.hardness": "stages.synthesis.terms.hard_cross_entropy",
    "synthesis.hardness.beta": "stages.synthesis.terms.hard_cross_entropy.weight",
    "synthesis.hardness.enabled": "stages.synthesis.terms.hard_cross_entropy.by_difficulty",
    "synthesis.augmentation": "stages.synthesis.transforms.crop_and_flip",
    "synthesis.calibration": "stages.calibration",
    "synthesis.calibration.cross_entropy_weight": "stages.calibration.terms.cross_entropy.weight",
    "synthesis.calibration.bns_weight": "stages.calibration.terms.bns.weight",
    "synthesis=images": "source@sources.bank=images",
    "synthesis=generator": "method=hast_alternating",
    "synthesis=generator_gdfq": "method=gdfq",
    "distillation": "stages.distillation, and stages.alternation.distillation of methods that "
    "alternate",
    "distillation.kd": "stages.distillation.terms.kd",
    "distillation.alignment": "stages.distillation.terms.alignment",
    "distillation.promotion": "stages.distillation.transforms.promotion",
    "distillation.augmentation": "stages.distillation.transforms.crop_and_flip",
    "distillation.cross_entropy_weight": "the weight of the term cross_entropy of method=gdfq",
    "distillation=gdfq": "method=gdfq",
    "distillation=hast": "method=hast",
    "distillation=hast_imagenet": "method=hast_imagenet",
    "schedule=two_stage": "schedule=released with method=hast",
    "schedule=two_stage_imagenet": "schedule=released with method=hast_imagenet",
    "schedule=two_stage_quick": "schedule=quick with method=hast",
    "schedule=digits": "schedule=demo",
    "schedule=alternating": "schedule=released with method=hast_alternating or method=gdfq",
    "schedule=alternating_quick": "schedule=quick with method=hast_alternating or method=gdfq",
    "schedule.name=two_stage": "method=hast",
    "schedule.name=alternating": "method=hast_alternating or method=gdfq",
    "schedule.synthesis_steps": "stages.synthesis.steps",
    "schedule.learning_rate.policy": "schedule.learning_rate",
    "schedule.learning_rate.milestones": "stages.distillation.learning_rate.milestones",
    "schedule.learning_rate.factor": "stages.distillation.learning_rate.factor",
    "schedule.learning_rate.warmup_steps": "stages.distillation.learning_rate.warmup_steps",
    "quantizer.name": "the group quantizer, as quantizer=lsq",
    "quantizer.step_lr_multiplier": "quantizer.ranges.lr_multiplier",
    "quantizer.percentile": "quantizer.ranges.percentile",
}
"""By the old key or ``group=option``; what stands below an old key moved along with it."""


def renamed(word: str) -> str | None:
    """Return the line that tells the new name of an old one; none of what was never a name.

    Args:
        word: A dotted key, or ``key=value``.
    """
    key, _, value = word.partition("=")
    parts = key.split(".")
    above = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    for old in (f"{key}={value}", *above):
        if old in RENAMED:
            place = "" if old in (key, word) else f"{key}: "
            return f"{place}{old} is now {RENAMED[old]}"
    return None
