"""What was quantized and how, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hast_lightning.config import Config
from hast_lightning.core.part import Part
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.quantization.fake_quant import activation_quantizers, quantized_layers
from hast_lightning.quantization.settings import LayerBits
from hast_lightning.records.failure import Failure
from hast_lightning.records.folder import RESULT_FILE
from hast_lightning.records.result import Result
from hast_lightning.records.results_table import readable_size
from hast_lightning.records.versions import device_name
from hast_lightning.report.content import EarlyEnd, Fact, Switch
from hast_lightning.runs.assembly import Run
from hast_lightning.tracking.facts import switched_parts

UNSAID = ("kind", "enabled", "source", "steps")
"""Settings that are said elsewhere."""
EXPORT_COLUMNS = {
    "format": "format",
    "agreement": "agreement with the student, %",
    "bytes": "size",
    "milliseconds": "ms an image",
    "float_milliseconds": "ms in float32",
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
        Fact("Method", _method(config)),
        *(Fact(f"Source {name}", _settings(part)) for name, part in _used_sources(run)),
        *(Fact(f"Stage {name}", _stage(run, name)) for name in config.order),
        Fact("Evaluation", _evaluation(run)),
    )


def widths(bits: Sequence[int]) -> str:
    """The bits of many tensors: ``3 bits``, or ``2 bits (8 bits in 2 of them)``."""
    (usual, _), *others = Counter(bits).most_common()
    text = ", ".join(f"{count} bits in {number} of them" for count, number in sorted(others))
    return f"{usual} bits" + (f" ({text})" if text else "")


def _quantizer(config: Config) -> str:
    quantizer = config.quantizer
    parts = [
        f"ranges: {_settings(quantizer.ranges)}",
        f"rounding: {_settings(quantizer.rounding)}",
        f"placement: {_settings(quantizer.placement)}",
        f"gradient {quantizer.gradient.replace('_', ' ')}",
        "first and last layer at 8 bits" * quantizer.first_and_last_8bit,
        *(_override(override) for override in quantizer.overrides),
    ]
    return "; ".join(filter(None, parts))


def _override(override: LayerBits) -> str:
    widths = (("weights", override.weight_bits), ("activations", override.activation_bits))
    given = ", ".join(f"{what} {bits} bits" for what, bits in widths if bits is not None)
    return f"{override.layers}: {given}"


def _method(config: Config) -> str:
    method = config.method
    source = f" ({method.paper})" if method.paper else ""
    return f"{method.title or method.name}{source}; budget: {config.schedule.name}"


def _used_sources(run: Run) -> list[tuple[str, Part]]:
    return [(name, run.config.sources[name]) for name in run.module.sources]


def _stage(run: Run, name: str) -> str:
    steps = run.module.agenda.stages.get(name, 0)
    stage = run.config.stages[name]
    others = [
        f"{field.name}: {_settings(value, field.name)}"
        for field in fields(stage)
        if is_dataclass(value := getattr(stage, field.name)) and not isinstance(value, type)
    ]
    return "; ".join([f"{_settings(stage)}, {steps:,} iterations", *others])


def _settings(part: Any, kind: str = "") -> str:
    """Return a part in one line: its kind, and its settings that are numbers or words."""
    shown = []
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name not in UNSAID and isinstance(value, int | float | str):
            shown.append(f"{field.name.replace('_', ' ')} {value}")
    name = getattr(part, "kind", kind).replace("_", " ")
    return name + (f" ({', '.join(shown)})" if shown else "")


def _evaluation(run: Run) -> str:
    if not (run.config.evaluate and run.config.trains):
        return "none in this run"
    if run.data is None:
        return "held-out samples, no labels"
    return f"{run.config.data.source}, never trained on; the last step counts"


def switches(config: Config) -> tuple[Switch, ...]:
    """Return every term and transform of the stages that run, each with its switch."""
    return tuple(
        Switch(
            name=_title(part),
            enabled=part.active if isinstance(part, Term) else part.enabled,
            settings=_settings(part),
            key=f"stages.{place}.enabled",
        )
        for place, part in switched_parts(config)
    )


def _title(part: Term | Transform) -> str:
    return getattr(part, "title", "") or part.kind.replace("_", " ").capitalize()


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
    """Return what kept the run from its end, in words; none where nothing did."""
    if failure is None:
        return None
    headline = failure.headline(failure.iteration >= run.module.agenda.iterations)
    if (run.folder / RESULT_FILE).exists():
        advice = "The result below was measured before and stands."
    elif failure.checkpoint is None:
        advice = "There is no checkpoint: resume=<this folder> begins the run anew."
    else:
        advice = f"resume=<this folder> goes on from its checkpoint {failure.checkpoint}."
    return EarlyEnd(headline[0].upper() + headline[1:], failure.reason, advice)


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
