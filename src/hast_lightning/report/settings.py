"""Network, quantizer and origin of a run in words, and its key figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hast_lightning.config import Config
from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.core.network import FEATURES, TOKENS, PretrainedNetwork
from hast_lightning.core.part import Part
from hast_lightning.quantization.fake_quant import activation_quantizers, weight_bits
from hast_lightning.quantization.layer_bits import QUANTIZABLE
from hast_lightning.quantization.settings import LayerBits
from hast_lightning.records.failure import Failure
from hast_lightning.records.folder import RESULT_FILE
from hast_lightning.records.result import EVALUATION, Result
from hast_lightning.records.results_table import readable_size
from hast_lightning.records.versions import device_name
from hast_lightning.report.content import EarlyEnd, Fact
from hast_lightning.report.parts import about, settings_of
from hast_lightning.runs.assembly import Run

EXPORT_COLUMNS = {
    "format": "format",
    "agreement": "agreement with the student, %",
    "bytes": "size",
    "milliseconds": "ms an image",
    "float_milliseconds": "ms in float32",
}


def input_in_words(network: PretrainedNetwork) -> str:
    """Return the shape of an input, (C, H, W), (C, L) or (L,), and what its numbers are."""
    shape = network.input_shape
    if network.denoises:
        pictures = " × ".join(map(str, (shape[0] - 1, *shape[1:])))
        return f"{pictures} (channels × height × width), and the timestep as one more channel"
    if network.modality == TOKENS:
        return f"texts of {shape[0]:,} tokens"
    axes = "frames × coefficients" if network.modality == FEATURES else "height × width"
    names = f"channels × {axes}" if len(shape) == 3 else "channels × length"
    return f"{' × '.join(map(str, shape))} ({names})"


def _output(network: PretrainedNetwork) -> Fact:
    """Return what the network puts out."""
    if network.denoises:
        return Fact("Output", "the noise of a picture")
    if network.outputs is None:
        return Fact("Classes", f"{network.num_classes:,}")
    return Fact("Outputs", f"{network.outputs.in_words}; compared as they are")


def facts_of(run: Run) -> tuple[Fact, ...]:
    """Return the method, the network, its quantizer, the sources and the evaluation in words."""
    config, network, student = run.config, run.network, run.module.student
    parameters = sum(parameter.numel() for parameter in network.network.parameters())
    weights = [weight_bits(m) for m in student.modules() if isinstance(m, QUANTIZABLE)]
    activations = [quantizer.bits for quantizer in activation_quantizers(student)]
    quantizer = config.quantizer
    axes = (
        Fact("Weights", f"{widths(weights)}, {len(weights)} layers"),
        Fact("Activations", _activations(activations)),
        Fact("Ranges", _part(quantizer.ranges)),
        Fact("Rounding", f"{_part(quantizer.rounding)} {_gradient(config)}"),
        Fact("Placement", _part(quantizer.placement)),
        *(Fact("Exception", text) for text in _exceptions(config)),
    )
    new = Fact("Student", "A new network in floating point, trained from scratch.")
    return (
        Fact("Method", _method(config)),
        Fact("Network", f"{network.name}, {parameters:,} parameters"),
        Fact("Input", input_in_words(network)),
        _output(network),
        *((new,) if quantizer.floating else axes),
        *(Fact(f"Source {name}", _part(config.sources[name])) for name in run.module.sources),
        Fact("Evaluation", _evaluation(run)),
    )


def _part(part: Part) -> str:
    """Return what a part is and how it is set, as two sentences."""
    settings = settings_of(part)
    return about(part) + (f" Settings: {settings}." if settings else "")


def _gradient(config: Config) -> str:
    return f"Gradients are {config.quantizer.gradient.replace('pass_through', 'passed through')}."


def _exceptions(config: Config) -> list[str]:
    ends = ["first and last layer: 8 bits"] * config.quantizer.first_and_last_8bit
    return [*ends, *map(_override, config.quantizer.overrides)]


def widths(bits: Sequence[int]) -> str:
    """Return the bits of many tensors: ``3 bits``, or ``2 bits (8 bits in 2 of them)``."""
    (usual, _), *others = Counter(bits).most_common()
    text = ", ".join(f"{_bits(count)} in {number} of them" for count, number in sorted(others))
    return _bits(usual) + (f" ({text})" if text else "")


def _bits(count: int) -> str:
    return "floating point" if count == FLOAT_BITS else f"{count} bits"


def _activations(bits: Sequence[int]) -> str:
    if not bits:
        return "floating point"
    return f"{widths(bits)}, {len(bits)} tensors, one range each"


def _override(override: LayerBits) -> str:
    widths = (("weights", override.weight_bits), ("activations", override.activation_bits))
    given = ", ".join(f"{what} {_bits(bits)}" for what, bits in widths if bits is not None)
    return f"{override.layers}: {given}"


def _method(config: Config) -> str:
    method = config.method
    title = f"{method.title} ({method.name})" if method.title else method.name
    return "; ".join(filter(None, [title, method.paper, f"budget {config.schedule.name}"]))


def _evaluation(run: Run) -> str:
    if not (run.config.evaluate and run.config.trains):
        return "none in this run"
    if run.data is None:
        return "held-out samples, no labels"
    return f"{run.config.data.source}, never trained on; the last step counts"


def origin(run: Run, result: Result | None) -> tuple[Fact, ...]:
    """Return seed, commit, weights, device and what the run took up."""
    facts = [
        Fact("Seed", str(run.config.seed)),
        Fact("Git commit", run.origin.git_commit or "not run from a checkout"),
        Fact("Weights' SHA-256", run.network.checksum),
        *(Fact(f"Teaches, too: {n}", _teacher(each)) for n, each in run.network.teachers.items()),
        Fact("Device", device_name(run.module.device)),
    ]
    if result is not None:
        facts += [Fact(name, text) for name, text in _footprint(result) if text]
    if run.origin.resumes:
        count = run.origin.resumes
        facts.append(Fact("Resumed", "once" if count == 1 else f"{count} times"))
    return tuple(facts)


def _teacher(network: PretrainedNetwork) -> str:
    return f"{network.name}, SHA-256 {network.checksum}"


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
    """Return the numbers that come first: of the student that is handed back."""
    ratio = result.teacher_bytes / max(result.quantized_bytes, 1)
    return (
        *(_of_what_is_kept(result) if result.handed_back_earlier else _of_the_last_step(result)),
        Fact("smaller than in float32", f"{ratio:.1f}×"),
        Fact(
            "for synthesis, training and evaluation",
            duration(sum(result.seconds_by_stage.values())),
        ),
    )


def _of_the_last_step(result: Result) -> list[Fact]:
    values = (
        result.quantized_top1,
        result.quantized_perplexity,
        result.teacher_agreement,
        result.output_error,
    )
    return [
        *_figures(result.bits, *values),
        *_of_outputs(result),
    ]


def _of_what_is_kept(result: Result) -> list[Fact]:
    """Return the same of an earlier student; of single outputs those of the last step."""
    error = result.judged[result.kept_stage].get(EVALUATION, {}).get("error")
    if result.output_error is None:
        error = None
    values = (result.kept_top1, result.kept_perplexity, result.kept_agreement, error)
    ending = f", handed back, after {result.kept_stage}"
    kept = [Fact(fact.name + ending, fact.text) for fact in _figures(result.bits, *values)]
    return [*kept, *(Fact(f"{each.name}, last step", each.text) for each in _of_outputs(result))]


def _of_outputs(result: Result) -> list[Fact]:
    errors = result.output_errors.items()
    return [Fact(f"error of the output {name}", f"{error:.3g}") for name, error in errors]


def _figures(
    bits: str,
    top1: float | None,
    perplexity: float | None,
    agreement: float | None,
    error: float | None,
) -> list[Fact]:
    """Return what was measured, in words."""
    named = (
        (f"top-1 at {bits}", top1, "{:.2f} %"),
        (f"perplexity at {bits}", perplexity, "{:.3f}"),
        ("agreement with full precision", agreement, "{:.2f} %"),
        ("error of the outputs, of their spread", error, "{:.3g}"),
    )
    return [Fact(name, form.format(value)) for name, value, form in named if value is not None]


def duration(seconds: float) -> str:
    """Return ``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def exports(result: Result | None) -> tuple[dict[str, str], ...]:
    """Return exported files and how they compare with the student, as rows of one table."""
    rows = []
    for name, record in ({} if result is None else result.exports).items():
        values: dict[str, Any] = {**record}
        # Those that matter first: a narrow screen shows no more at once.
        order = [*EXPORT_COLUMNS, *(key for key in values if key not in EXPORT_COLUMNS)]
        cells = {EXPORT_COLUMNS.get(k, k): _cell(k, values[k]) for k in order if k in values}
        rows.append({"format": name, **cells})
    return tuple(rows)


def _cell(name: str, value: Any) -> str:
    if name == "bytes":
        return readable_size(value)
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
