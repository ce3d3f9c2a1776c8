"""What was quantized and how, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hast_lightning.assembly import Run
from hast_lightning.config import Config, LayerBitsConfig
from hast_lightning.quantization.fake_quant import activation_quantizers, quantized_layers
from hast_lightning.report.content import EarlyEnd, Fact, Switch
from hast_lightning.reporting.failure import Failure
from hast_lightning.reporting.result import Result
from hast_lightning.reporting.table import readable_size
from hast_lightning.reporting.versions import device_name
from hast_lightning.run_folder import RESULT_FILE

RANGES = {
    "minmax": "minimum and maximum",
    "mse": "least squared error",
    "percentile": "percentiles",
    "lsq": "learned step sizes",
}
EXPORT_COLUMNS = {
    "format": "format",
    "agreement": "agreement with the student, %",
    "bytes": "size",
    "milliseconds": "ms an image",
    "float_milliseconds": "ms in float32",
}
ENDS = {"KeyboardInterrupt": "Interrupted", "SIGTERMException": "Terminated"}
"""What ended a run from outside, by the class of the error."""
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
SOURCES = {
    "image_bank": "a bank of images that are optimized themselves",
    "generator": "a conditional generator",
}


def describe(run: Run) -> tuple[Fact, ...]:
    """The network, its quantizer, the images and the training."""
    config, network, student = run.config, run.network, run.module.student
    parameters = sum(parameter.numel() for parameter in network.network.parameters())
    channels, height, width = network.input_shape
    weights = [layer.weight_quantizer.bits for _, layer in quantized_layers(student)]
    activations = [quantizer.bits for quantizer in activation_quantizers(student)]
    return (
        Fact("Network", f"{network.name}, {parameters:,} parameters"),
        Fact("Input", f"{channels} × {height} × {width} (channels × height × width)"),
        Fact("Classes", f"{network.num_classes:,}"),
        Fact("Weights", f"{widths(weights)}, {len(weights)} layers"),
        Fact("Activations", f"{widths(activations)}, {len(activations)} tensors, one range each"),
        Fact("Quantizer", _quantizer(config)),
        Fact("Images", _images(config)),
        Fact("Student", _student(config)),
        Fact("Schedule", _schedule(run)),
        Fact("Evaluation", _evaluation(run)),
    )


def widths(bits: Sequence[int]) -> str:
    """The bits of many tensors: ``3 bits``, or ``2 bits (8 bits in 2 of them)``."""
    (usual, _), *others = Counter(bits).most_common()
    text = ", ".join(f"{count} bits in {number} of them" for count, number in sorted(others))
    return f"{usual} bits" + (f" ({text})" if text else "")


def _quantizer(config: Config) -> str:
    quantizer = config.quantizer
    ranges = quantizer.ranges or quantizer.name
    parts = [
        f"{quantizer.name}: ranges by {RANGES.get(ranges, ranges)}",
        f"gradient {quantizer.gradient.replace('_', ' ')}",
        "first and last layer at 8 bits" * quantizer.first_and_last_8bit,
        *(_override(override) for override in quantizer.overrides),
    ]
    return "; ".join(filter(None, parts))


def _override(override: LayerBitsConfig) -> str:
    widths = (("weights", override.weight_bits), ("activations", override.activation_bits))
    given = ", ".join(f"{what} {bits} bits" for what, bits in widths if bits is not None)
    return f"{override.layers}: {given}"


def _images(config: Config) -> str:
    synthesis = config.synthesis
    if synthesis.load is not None:
        return f"loaded from {synthesis.load}"
    text = SOURCES.get(synthesis.source, synthesis.source)
    if synthesis.source == "image_bank":
        bank = synthesis.bank
        text += f": {bank.size:,} images, {bank.iterations:,} steps for each {bank.batch_size}"
    return text


def _student(config: Config) -> str:
    if "distill" not in config.run:
        return "not trained in this run"
    options, name = config.distillation, config.distillation.optimizer.name
    return (
        f"{OPTIMIZERS.get(name, name)}, learning rate {options.optimizer.lr:g}, batches of "
        f"{options.batch_size}"
    )


def _schedule(run: Run) -> str:
    stages = ", ".join(f"{name} {steps:,}" for name, steps in run.module.stage_totals.items())
    return f"{run.config.schedule.name.replace('_', ' ')} (iterations: {stages})"


def _evaluation(run: Run) -> str:
    if not {"distill", "evaluate"} <= set(run.config.run):
        return "none in this run"
    if run.data is None:
        return "held-out synthetic images, no labels"
    return f"{run.config.data.source}, never trained on; the last step counts"


def switches(config: Config) -> tuple[Switch, ...]:
    """The three parts of HAST, each with its switch."""
    hardness, options = config.synthesis.hardness, config.distillation
    promotion, alignment = options.promotion, options.alignment
    # What trains no student has the first part alone.
    parts = 3 if "distill" in config.run else 1
    return (
        Switch(
            "Hard-sample synthesis",
            hardness.enabled,
            f"β = {hardness.beta:g}, γ = {hardness.gamma if hardness.enabled else 0:g}",
            "synthesis.hardness.enabled",
        ),
        Switch(
            "Sample difficulty promotion",
            promotion.enabled,
            f"ε = {promotion.eps:g}",
            "distillation.promotion.enabled",
        ),
        Switch(
            "Feature alignment",
            alignment.enabled,
            f"λ = {alignment.weight:g}, {_blocks(config)}",
            "distillation.alignment.enabled",
        ),
    )[:parts]


def _blocks(config: Config) -> str:
    """Where features are compared."""
    return "blocks named by model.taps" if config.model.taps else "at every block"


def origin(run: Run, result: Result | None) -> tuple[Fact, ...]:
    """Seed, commit, weights, device and what the run took up."""
    facts = [
        Fact("Seed", str(run.config.seed)),
        Fact("Git commit", run.origin.git_commit or "not run from a checkout"),
        Fact("Weights' SHA-256", run.network.checksum),
        Fact("Device", device_name(run.module.device)),
    ]
    if result is not None:
        facts += [Fact(name, text) for name, text in _footprint(result) if text]
    if run.origin.resumes:
        count = run.origin.resumes
        facts.append(Fact("Resumed", "once" if count == 1 else f"{count} times"))
    return tuple(facts)


def early_end(run: Run, failure: Failure | None) -> EarlyEnd | None:
    """What kept the run from its end, in words; none where nothing did."""
    if failure is None:
        return None
    what = ENDS.get(failure.kind, "Failed")
    done = failure.iteration >= run.module.schedule.iterations
    where = f"at step {failure.step:,} of {failure.total:,} of stage {failure.stage}"
    if (run.folder / RESULT_FILE).exists():
        advice = "The result below was measured before and stands."
    elif failure.checkpoint is None:
        advice = "There is no checkpoint: resume=<this folder> begins the run anew."
    else:
        advice = f"resume=<this folder> goes on from its checkpoint {failure.checkpoint}."
    return EarlyEnd(f"{what} {'after the last step' if done else where}", failure.reason, advice)


def _footprint(result: Result) -> list[tuple[str, str]]:
    sizes = (("Peak memory", result.peak_memory_bytes), ("Files", result.disk_bytes))
    return [(name, "" if size is None else readable_size(size)) for name, size in sizes]


def key_figures(result: Result) -> tuple[Fact, ...]:
    """The numbers that come first."""
    bits = f"W{result.weight_bits}A{result.activation_bits}"
    ratio = result.teacher_bytes / max(result.quantized_bytes, 1)
    figures = [
        Fact(f"top-1 at {bits}", f"{result.quantized_top1:.2f} %")
        if result.quantized_top1 is not None
        else None,
        Fact("agreement with full precision", f"{result.teacher_agreement:.2f} %"),
        Fact("smaller than in float32", f"{ratio:.1f}×"),
        Fact(
            "for synthesis, training and evaluation",
            duration(sum(result.seconds_by_stage.values())),
        ),
    ]
    return tuple(figure for figure in figures if figure is not None)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def exports(result: Result | None) -> tuple[dict[str, str], ...]:
    """Exported files and how they compare with the student, as rows of one table."""
    found: Any = getattr(result, "exports", None) or []
    entries = found.items() if isinstance(found, dict) else enumerate(found)
    rows = []
    for name, entry in entries:
        named = {"format": str(name)} if isinstance(found, dict) else {}
        values = entry if isinstance(entry, dict) else {"value": entry}
        # Those that matter first: a narrow screen shows no more at once.
        order = [*EXPORT_COLUMNS, *(key for key in values if key not in EXPORT_COLUMNS)]
        ordered = {key: values[key] for key in order if key in values}
        cells = {EXPORT_COLUMNS.get(key, key): _cell(key, value) for key, value in ordered.items()}
        rows.append({**named, **cells})
    return tuple(rows)


def _cell(name: str, value: Any) -> str:
    if name == "bytes":
        return readable_size(value)
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
