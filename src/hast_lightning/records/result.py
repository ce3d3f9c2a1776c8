"""The result of one run, as it is written to ``result.json``.

``docs/result.md`` explains the same fields to readers of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from hast_lightning.config.safeguard import REFERENCE
from hast_lightning.core.bits import Widths
from hast_lightning.errors import DataError
from hast_lightning.records.folder import write_whole

EVALUATION = "evaluation"
"""The images that a result is measured on, where a student was judged."""
RETIRED = ("synthesis_steps", "calibration_steps")
"""Fields of results of versions before 0.2."""
STAGES = {"warmup": "calibration", "alternating": "alternation"}
"""What stages of versions before 0.2 are called today, where they have other names."""


class ExportRecord(TypedDict):
    """Findings of running an exported file, before it got its name."""

    file: str
    """Its name in the run folder."""
    bytes: int
    """Its size."""
    images: int
    """Images that it was run on, beside the student."""
    agreement: float | None
    """Percent of them on which it predicts the student's class; none of values."""
    compared: int
    """Images that its logits were compared on: these, and others that were drawn."""
    deviation: float
    """Largest distance of a logit from the student's, as a share of the logits' spread; median
    over the images."""
    largest_logit_difference: float
    """From the student's, over all images and outputs."""
    engine: str
    """What ran it, on the CPU, with its version."""
    milliseconds: float
    """For one image; median."""
    float_milliseconds: float
    """The same of the full-precision network in the same engine, measured in turns."""


class TeacherRecord(TypedDict):
    """One of several networks that taught together."""

    model: str
    """Name of the network."""
    checksum: str
    """SHA-256 of its weights, in hexadecimal."""
    weight: float
    """What its logits were multiplied by after the last step; only ratios count."""


@dataclass(frozen=True)
class Result:
    """The numbers of one run and what is needed to obtain them again.

    Accuracies and agreements are in percent and belong to the *last* student step: without
    data there are no labels to choose a better step by. Accuracies are none when there is no
    labelled evaluation data.
    """

    recipe: str
    """Name of the recipe."""
    seed: int
    """Seed of every random number of the run."""
    model: str
    """Name of the pretrained network."""
    model_checksum: str
    """SHA-256 of its weights, in hexadecimal."""
    weight_bits: int
    """Bits of a weight; 32: floating point."""
    activation_bits: int
    """Bits of an activation; 32: floating point."""
    teacher_top1: float | None
    """Top-1 accuracy of the full-precision network."""
    calibrated_top1: float | None
    """Top-1 accuracy of the student before its first step: calibrated ranges, untouched weights;
    none of one whose weights are drawn afresh."""
    quantized_top1: float | None
    """Top-1 accuracy of the quantized student after its last step: the result of the run."""
    teacher_agreement: float | None
    """Share of the evaluated images on which the student and the teacher predict one class; none
    where the network puts out values and no classes."""
    agreement_on: str
    """What the agreements were measured on: evaluation or held-out synthetic images."""
    calibrated_agreement: float | None
    """The same agreement before the first student step; none if it was not measured."""
    evaluated_images: int
    """Number of images behind every accuracy and agreement."""
    seconds_by_stage: dict[str, float]
    """Wall-clock seconds of each stage."""
    peak_memory_bytes: int | None
    """Peak memory in bytes: allocated tensors on CUDA, else the resident set of the process."""
    disk_bytes: int | None
    """Size of all files of the run folder in bytes at the last evaluation; none: not recorded."""
    device: str
    """Name of the device."""
    versions: dict[str, str]
    """Version of Python and of every package that can change the numbers."""
    teacher_bytes: int
    """Size of the teacher's parameters in bytes, in float32."""
    quantized_bytes: int
    """Size of the student in bytes: weights packed at their bits, scales, and the float rest."""
    best_on_test_top1: float | None
    """Best of the periodic evaluations, chosen on test labels: never a result; none without."""
    status: str
    """``complete``; a run that has not come to its end writes no result."""
    resumes: int
    """How often the run was taken up again from a checkpoint; 0 if it ran in one go."""
    git_commit: str | None
    """Commit of the source, ending in ``-dirty`` with local changes; none when installed."""
    command: str
    """Command line that makes the result again; of a job of a sweep, the job's own."""
    mixed: bool = False
    """Single layers have other bits than these."""
    method: str = ""
    """Name of the method; empty in results of versions that had one method only."""
    budget: str = ""
    """Name of the schedule, which is the budget of the run; empty likewise."""
    steps_by_stage: dict[str, int] = field(default_factory=dict)
    """Steps of each stage, in order."""
    student_steps: int = 0
    """Steps that trained the student."""
    kept_stage: str = ""
    """Stage after which the student was taken that is exported and handed back: that after which
    it was closest to the full-precision network; empty in results of versions that always took the
    last."""
    kept_top1: float | None = None
    """Top-1 accuracy of that student."""
    kept_agreement: float | None = None
    """Agreement of that student with the full-precision network."""
    teacher_perplexity: float | None = None
    """Perplexity of the full-precision network on the evaluated texts; none of any other network
    than one of tokens, and without texts of the user's. So are the next three."""
    calibrated_perplexity: float | None = None
    """The same of the student before its first step."""
    quantized_perplexity: float | None = None
    """The same of the student after its last step."""
    kept_perplexity: float | None = None
    """The same of the student that is handed back."""
    judged: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """How close the student was to the full-precision network after each stage, without labels, by
    kind of images: ``error`` of the logits relative to their spread, ``agreement`` in percent.
    Empty where nothing was judged."""
    judge_version: int = 0
    """Version of the judge's own images; ``judged`` is comparable among runs of the same alone. 2:
    they match relative BatchNorm statistics; 0 of runs that did not say or judged nothing."""
    batch_norm_statistics: dict[str, float] = field(default_factory=dict)
    """BatchNorm statistics loss of each source's samples and of noise, by name; low is good."""
    teachers: dict[str, TeacherRecord] = field(default_factory=dict)
    """Networks that taught together, by name: ``model`` is that which the student was made of. The
    accuracy of the teacher and agreements are then those of all together. Empty where ``model``
    taught alone."""
    output_error: float | None = None
    """Of a network that puts out values and no classes (``model.modality=diffusion``, or several
    outputs): squared error of the student's outputs after its last step, relative to the spread of
    the full-precision network's; 0: they are the same. None of classes."""
    output_errors: dict[str, float] = field(default_factory=dict)
    """Of a network with several outputs the error of each, by name; ``output_error`` is their mean.
    Empty of any other."""
    exports: dict[str, ExportRecord] = field(default_factory=dict)
    """What was exported, by format; empty in results of versions that exported nothing."""

    @property
    def error_without_labels(self) -> float | None:
        """Return the error of the logits after the last step, on images that nobody trained on."""
        *_, last = [{}, *self.judged.values()]
        return last.get(REFERENCE, {}).get("error")

    @property
    def bits(self) -> str:
        """Return the bits in words: ``W4A8``, ``W4, activations in float, mixed``."""
        widths = Widths(self.weight_bits, self.activation_bits)
        return f"{widths}, mixed" if self.mixed else str(widths)

    @property
    def handed_back_earlier(self) -> bool:
        """Return whether the student that is handed back is not that of the last stage."""
        return bool(self.judged) and self.kept_stage != list(self.judged)[-1]

    def write(self, path: str | Path) -> None:
        """Write the result as JSON, whole or not at all.

        Raises:
            ValueError: a number is NaN or infinite; nothing is written then.
        """
        content = asdict(self)
        for name, number in _numbers(content):
            if not math.isfinite(number):
                raise ValueError(f"result field {name} is {number}")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), json.dumps(content, indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """Read a result that :meth:`write` wrote.

        Raises:
            DataError: the file is missing, is not JSON, lacks or adds a field, or has one of
                another type.
        """
        try:
            content = json.loads(
                Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant
            )
        except OSError as error:
            raise DataError(f"cannot read the result {path}: {error.strerror}") from error
        except ValueError as error:
            raise DataError(f"the result {path} is not valid JSON: {error}") from error
        content = _with_stages_of_today(content)
        _check_fields(content, path)
        _check_types(content, path)
        return cls(**content)


def _with_stages_of_today(content: Any) -> Any:
    """Return the content of a result of versions before 0.2 with the stages that it would have.

    They had two schedules: one stage after the other, or a warm-up and then a synthesis step and
    a student step in turns.
    """
    if not isinstance(content, dict) or "synthesis_steps" not in content:
        return content
    kept = {name: value for name, value in content.items() if name not in RETIRED}
    seconds = content.get("seconds_by_stage")
    timed = seconds if isinstance(seconds, dict) else {}
    alternated = "alternating" in timed
    of_student = "alternation" if alternated else "distillation"
    steps = {} if alternated else {"synthesis": content["synthesis_steps"]}
    steps["calibration"] = content.get("calibration_steps", 0)
    steps[of_student] = content.get("student_steps", 0)
    if timed:
        kept["seconds_by_stage"] = {STAGES.get(name, name): s for name, s in timed.items()}
    return {**kept, "steps_by_stage": {name: value for name, value in steps.items() if value}}


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every float inside ``value`` with its dotted name."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _numbers(child, f"{name}.{key}" if name else str(key))
    elif isinstance(value, float):
        yield name, value


def _refuse_constant(constant: str) -> None:
    """Refuse ``NaN`` and ``Infinity``, which Python reads although they are not JSON."""
    raise ValueError(f"{constant} is not a number")


def _check_fields(content: Any, path: str | Path) -> None:
    if not isinstance(content, dict):
        raise DataError(f"the result {path} holds no fields")
    required = {
        entry.name
        for entry in fields(Result)
        if entry.default is MISSING and entry.default_factory is MISSING
    }
    known = {entry.name for entry in fields(Result)}
    for problem, names in (
        ("lacks", required - content.keys()),
        ("has unknown fields", content.keys() - known),
    ):
        if names:
            raise DataError(f"the result {path} {problem}: {', '.join(sorted(names))}")


def _check_types(content: dict[str, Any], path: str | Path) -> None:
    """Refuse what would only be noticed where someone computes with it."""
    for name, hint in get_type_hints(Result).items():
        if name in content and not _is_a(content[name], hint):
            kind = hint.__name__ if type(hint) is type else hint
            raise DataError(f"the result {path}: {name}={content[name]!r} is not of type {kind}")
    for name, number in _numbers(content):
        if not math.isfinite(number):  # 1e999 is JSON, and too large for a float
            raise DataError(f"the result {path}: {name} is {number}")


def _is_a(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_is_a(value, kind) for kind in get_args(hint))
    if get_origin(hint) is dict:
        kind = get_args(hint)[1]
        return isinstance(value, dict) and all(_is_a(child, kind) for child in value.values())
    if is_typeddict(hint):
        return isinstance(value, dict)
    if hint is bool:
        return isinstance(value, bool)
    # JSON has one kind of number, and to Python true is an integer.
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and not isinstance(value, bool)
