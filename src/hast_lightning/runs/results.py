"""The result of a run: what was measured of its last step, and what made it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hast_lightning.core.ensemble import OWN
from hast_lightning.core.network import TOKENS
from hast_lightning.models.ensemble import EnsembleTeacher
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.quantization.size import float_bytes, quantized_bytes
from hast_lightning.records.folder import disk_bytes
from hast_lightning.records.result import EVALUATION, Result, TeacherRecord
from hast_lightning.records.versions import device_name, peak_memory_bytes
from hast_lightning.runs.assembly import Run
from hast_lightning.safeguard.choice import Choice
from hast_lightning.safeguard.reference import JUDGE_VERSION
from hast_lightning.training.callbacks.evaluation import StudentEvaluation


def result_of(
    run: Run,
    choice: Choice,
    statistics: Mapping[str, float],
    on_the_way: StudentEvaluation,
    seconds: Mapping[str, float],
) -> Result:
    """Return the result of a run after its last step.

    Args:
        run: The run.
        choice: The student that is handed back, and what was measured of all.
        statistics: BatchNorm statistics loss of each source's samples and of noise.
        on_the_way: What was measured before, of the calibrated student among others.
        seconds: Wall-clock seconds by stage, and of the evaluation.
    """
    config, module = run.config, run.module
    final, kept = choice.evaluated[choice.last], choice.evaluated[choice.stage]
    labelled, calibrated = run.data is not None, on_the_way.calibrated
    held_out = "held-out synthetic" if module.source.synthetic else "held-out own"
    what = "texts" if run.network.modality == TOKENS else "images"
    teacher_bytes, widths = float_bytes(run.network.network), config.quantizer.widths
    teachers = _teachers(module.teacher)
    against = f", against {len(teachers)} teachers together" if teachers else ""
    # A stage may have given single layers bits of their own.
    single = {layer.weight_quantizer.bits for _, layer in quantized_layers(module.student)}
    return Result(
        recipe=config.recipe,
        seed=config.seed,
        model=run.network.name,
        model_checksum=run.network.checksum,
        weight_bits=widths.weights,
        activation_bits=widths.activations,
        mixed=config.quantizer.mixed or len(single) > 1,
        teacher_top1=final.teacher_top1 if labelled else None,
        calibrated_top1=calibrated.student_top1 if labelled and calibrated else None,
        quantized_top1=final.student_top1 if labelled else None,
        teacher_agreement=final.agreement,
        output_error=final.error,
        output_errors=dict(final.errors),
        agreement_on=f"{'evaluation' if labelled else held_out} {what}{against}",
        calibrated_agreement=calibrated.agreement if calibrated else None,
        evaluated_images=final.images,
        method=config.method.name,
        budget=config.schedule.name,
        steps_by_stage=module.agenda.steps(module.iteration),
        student_steps=module.agenda.student_steps(module.iteration),
        seconds_by_stage=dict(seconds),
        peak_memory_bytes=peak_memory_bytes(module.device),
        disk_bytes=disk_bytes(run.folder),
        device=device_name(module.device),
        versions=run.origin.versions,
        teacher_bytes=teacher_bytes,
        quantized_bytes=quantized_bytes(module.student, teacher_bytes),
        best_on_test_top1=on_the_way.best,
        kept_stage=choice.stage,
        kept_top1=kept.student_top1 if labelled else None,
        kept_agreement=kept.agreement,
        teacher_perplexity=final.teacher_perplexity if labelled else None,
        calibrated_perplexity=calibrated.student_perplexity if labelled and calibrated else None,
        quantized_perplexity=final.student_perplexity if labelled else None,
        kept_perplexity=kept.student_perplexity if labelled else None,
        judged=_judged(choice, labelled=labelled),
        judge_version=JUDGE_VERSION if choice.judged else 0,
        batch_norm_statistics=dict(statistics),
        teachers=teachers,
        status="complete",
        resumes=run.origin.resumes,
        git_commit=run.origin.git_commit,
        command=run.origin.command,
    )


def _teachers(teacher: nn.Module) -> dict[str, TeacherRecord]:
    """Return who taught, and with which weight; empty where the network itself did alone."""
    if not isinstance(teacher, EnsembleTeacher):
        return {}
    own = teacher.pretrained
    networks = {OWN: own, **own.teachers}
    return {
        name: TeacherRecord(model=networks[name].name, checksum=networks[name].checksum, weight=w)
        for name, w in zip(teacher.names, teacher.weights.tolist(), strict=True)
    }


def _judged(choice: Choice, *, labelled: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Return what is known of the student after each stage, by kind of images."""
    found = {}
    for stage, by_images in choice.judged.items():
        evaluation = choice.evaluated[stage]
        known = {"agreement": evaluation.agreement, "error": evaluation.error}
        if labelled:
            known["top1"] = evaluation.student_top1
            known["perplexity"] = evaluation.student_perplexity
        measured = {name: value for name, value in known.items() if value is not None}
        closeness = {kind: close.measured for kind, close in by_images.items()}
        found[stage] = {**closeness, EVALUATION: measured}
    return found
