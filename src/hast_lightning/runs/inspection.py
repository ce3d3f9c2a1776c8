"""``command=inspect``: what would be quantized and how, before anything is run."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from torch import fx

from hast_lightning.config import Config
from hast_lightning.core.batch import Needs
from hast_lightning.core.bits import FLOAT_BITS, Widths
from hast_lightning.core.ensemble import OWN
from hast_lightning.core.network import TOKENS, PretrainedNetwork, example_inputs
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.errors import UserError
from hast_lightning.graph.blocks import find_taps, select_taps
from hast_lightning.graph.names import value_names
from hast_lightning.graph.network import Learner
from hast_lightning.graph.tracing import trace
from hast_lightning.models.ensemble import teacher_of
from hast_lightning.models.teacher import FrozenTeacher, batch_norms_are_new
from hast_lightning.models.zoo import load_all
from hast_lightning.quantization.convert import student_of
from hast_lightning.quantization.size import float_bytes, quantized_bytes
from hast_lightning.quantization.structure import Call, list_calls, value_bits
from hast_lightning.records.printing import as_it_is, plain_console
from hast_lightning.records.results_table import readable_size
from hast_lightning.records.structure_table import (
    PartRow,
    StageRow,
    method_table,
    structure_table,
    totals_table,
)
from hast_lightning.runs.sources import build_sources
from hast_lightning.tracking.facts import is_on, running_stages, switched_parts
from hast_lightning.training.bench import PreparedBench

COLUMNS = 100
"""Of the tables as text."""
_NAMES_SHOWN = 3


@dataclass(frozen=True, repr=False)
class Inspection:
    """A network, what quantizing it changes, and what a method does, before anything is run.

    ``print`` shows the tables of ``command=inspect``.

    Attributes:
        network: Name of the network; of a module that was handed over the name of its class.
        widths: Bits of weights and of activations where nothing else is said.
        mixed: Single layers may have other bits.
        quantizer: Name of the quantizer.
        calls: Layers, BatchNorms and quantized values with their shapes, bits and cost for one
            image, in order of execution.
        bits: Bits of each layer's weights, by name of the layer; 32 in floating point.
        activation_bits: Bits of each quantized value, by name of the module that puts it out.
        parameters: Of the whole network.
        float_bytes: Size in full precision.
        quantized_bytes: Size with weights in their bits.
        taps: Names of the values at which teacher and student are aligned.
        method: Name of the method.
        schedule: Name of the budget.
        steps: Steps of each stage, by name; empty where a run would be refused.
        stages: Name, steps, source and parts of each stage that runs.
        refusal: Why a run would be refused; empty where it would not.
        notes: What else is to be known, a line each.
    """

    network: str
    widths: Widths
    mixed: bool
    quantizer: str
    calls: tuple[Call, ...]
    bits: dict[str, int]
    activation_bits: dict[str, int]
    parameters: int
    float_bytes: int
    quantized_bytes: int
    taps: tuple[str, ...]
    method: str
    schedule: str
    steps: dict[str, int]
    stages: tuple[StageRow, ...]
    refusal: str
    notes: tuple[str, ...]

    def show(self, console: Console) -> None:
        """Print the tables, and the notes below them."""
        bits = f"{self.widths}{', mixed' * self.mixed} ({self.quantizer})"
        console.print(structure_table(f"{self.network}, {bits}", self.calls))
        sizes = (self.parameters, self.float_bytes, self.quantized_bytes)
        console.print(totals_table(self.calls, *sizes))
        console.print(method_table(f"{self.method}, budget {self.schedule}", self.stages))
        for line in self.notes:
            console.print(as_it_is(line), highlight=False, soft_wrap=True)

    def __str__(self) -> str:
        """Return what ``command=inspect`` prints, in 100 columns."""
        console = Console(file=io.StringIO(), width=COLUMNS, color_system=None)
        self.show(console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def __repr__(self) -> str:
        """Return the gist in one line."""
        size = f"{readable_size(self.quantized_bytes)} of {readable_size(self.float_bytes)}"
        bits = f"{self.widths}{', mixed' * self.mixed}"
        doing = f"{self.method}, {self.schedule}{'; would be refused' * bool(self.refusal)}"
        return f"Inspection({self.network}, {bits}: {size}, {doing})"


def inspect(config: Config, console: Console | None = None) -> None:
    """Print what the network is made of, what quantizing it changes, and what the method does.

    Needs neither evaluation data nor a run folder. A method that does not fit the network is no
    error here: the last line says why.

    Args:
        config: A checked configuration.
        console: Where to print; none: standard output.

    Raises:
        UserError: the network cannot be loaded or quantized.
    """
    examine(config, load_all(config.model, config.teachers)).show(console or plain_console())


def examine(config: Config, pretrained: PretrainedNetwork) -> Inspection:
    """Look at a network, its quantizer and a method, and train nothing.

    Args:
        config: A checked configuration.
        pretrained: The network.

    Raises:
        UserError: the network cannot be quantized.
    """
    graph_module = trace(pretrained.network)
    taps = select_taps(graph_module, config.model.taps)
    student = student_of(pretrained.network, config.quantizer, config.seed)
    found = list_calls(student, taps, example_inputs(1, pretrained.input_shape))
    size = float_bytes(pretrained.network)
    lengths, misfit, of_stages = _steps_by_stage(config, pretrained)
    teacher, learner = teacher_of(pretrained), Learner(student, pretrained)
    names = {node.name: name for node, name in value_names(graph_module.graph).items()}
    places = [names[tap] for tap in taps]
    ends = config.model.taps is not None or bool(find_taps(graph_module))
    return Inspection(
        network=pretrained.name,
        widths=config.quantizer.widths,
        mixed=config.quantizer.mixed,
        quantizer=config.quantizer.name,
        calls=tuple(found),
        bits={call.name: call.weight_bits for call in found if call.weight_bits is not None},
        activation_bits=value_bits(student),
        parameters=sum(parameter.numel() for parameter in pretrained.network.parameters()),
        float_bytes=size,
        quantized_bytes=quantized_bytes(student, size),
        taps=tuple(places),
        method=config.method.name,
        schedule=config.schedule.name,
        steps=dict(lengths),
        stages=tuple(_stages(config, lengths, teacher, learner)),
        refusal=misfit,
        notes=(
            *_describe_network(pretrained, config),
            *_describe_teachers(pretrained),
            *_describe_student(config),
            *_describe_statistics(graph_module),
            *_describe_layers(found),
            _describe_taps(places, ends=ends),
            *of_stages,
            *_describe_method(config, misfit),
        ),
    )


def _steps_by_stage(
    config: Config, pretrained: PretrainedNetwork
) -> tuple[dict[str, int], str, list[str]]:
    """Return the steps of each stage, or none and why a run would be refused; what stages found."""
    try:
        bench = PreparedBench(config, pretrained, build_sources(config, pretrained))
    except UserError as error:
        return {}, " ".join(str(error).split()), []
    found = {name: stage.found() for name, stage in bench.stages.items()}
    return bench.agenda.stages, "", [f"{name}: {text}" for name, text in found.items() if text]


def _stages(
    config: Config, lengths: Mapping[str, int], teacher: FrozenTeacher, learner: Learner
) -> list[StageRow]:
    """Return name, steps, source and parts of each stage that runs, and of those inside."""
    parts = dict(switched_parts(config))
    rows: list[StageRow] = []
    for place, stage in running_stages(config):
        own = [
            _part_row(key.rpartition(".")[2], part, teacher, learner)
            for key, part in parts.items()
            if key.rsplit(".", 2)[0] == place and is_on(part)
        ]
        length = lengths.get(place, 0) if lengths else None
        shown = "" if length is None or "." in place else f"{length:,}"
        *inside, name = place.split(".")
        rows.append(("  " * len(inside) + name, shown, str(getattr(stage, "source", "")), own))
    return rows


def _part_row(
    name: str, part: Term | Transform, teacher: FrozenTeacher, learner: Learner
) -> PartRow:
    weight = f"{part.weight:g}" if isinstance(part, Term) else ""
    try:
        needs = part.bind(teacher, learner)
    except UserError:
        return PartRow(name, weight, "does not fit")
    return PartRow(name, weight, ", ".join(_in_words(needs or Needs())))


def _in_words(needs: Needs) -> Iterator[str]:
    if needs.batch_norms:
        yield "BatchNorms"
    if needs.teacher:
        yield f"{len(needs.teacher)} teacher values"
    if needs.student is not None:
        yield f"{len(needs.student)} student values" if needs.student else "the student"
    if needs.labels != "none":
        yield f"{'hard ' * (needs.labels == 'hard')}labels"


def _describe_method(config: Config, misfit: str) -> Iterator[str]:
    method = config.method
    said = ", ".join(filter(None, [method.title, method.paper]))
    yield f"method: {method.name}{f' ({said})' if said else ''}"
    if misfit:
        yield f"a run would be refused: {misfit}"
    else:
        yield "time by stage, memory and disk on this machine: command=estimate"


def _describe_network(pretrained: PretrainedNetwork, config: Config) -> Iterator[str]:
    shape = "x".join(map(str, pretrained.input_shape))
    mean, std = (", ".join(f"{v:g}" for v in part) for part in (pretrained.mean, pretrained.std))
    assumed = config.model.provider == "own" and config.model.mean is None
    if pretrained.alpha_bar is not None:
        timesteps = len(pretrained.alpha_bar)
        yield f"input: {shape}, the last channel is the timestep, 0 to {timesteps - 1}"
        channels = pretrained.num_classes
        yield f"output: the noise in {channels} channel{'s' * (channels > 1)}"
    elif pretrained.modality == TOKENS:
        yield f"input: texts of {shape} tokens; {pretrained.num_classes} are known"
    else:
        yield f"input: {shape}, mean {mean}, std {std}{' (assumed: ImageNet)' * assumed}"
    if pretrained.outputs is not None:
        yield f"outputs: {pretrained.outputs.in_words}"
    elif not (pretrained.denoises or pretrained.modality == TOKENS):
        names = pretrained.class_names or ()
        yield f"classes: {pretrained.num_classes} ({_some(names) if names else 'without names'})"
    if config.model.provider == "given":
        yield f"weights: as handed over, SHA-256 {pretrained.checksum[:12]}..."
    elif config.model.pretrained:
        own = "as model.factory returns them" if config.model.factory else "the provider's own"
        origin = config.model.checkpoint or own
        yield f"weights: {origin}, SHA-256 {pretrained.checksum[:12]}..."
    else:
        yield "weights: random (model.pretrained=false)"


def _describe_teachers(pretrained: PretrainedNetwork) -> Iterator[str]:
    others = [
        f"{name} ({each.name}, SHA-256 {each.checksum[:12]}...)"
        for name, each in pretrained.teachers.items()
    ]
    if others:
        yield (
            f"teachers: {len(others) + 1}, of equal weight at first: {OWN} ({pretrained.name}, of "
            f"which the student is made), {', '.join(others)}"
        )


def _describe_student(config: Config) -> Iterator[str]:
    if config.quantizer.floating:
        yield f"student: a new network in floating point, drawn afresh by seed {config.seed}"


def _describe_statistics(graph_module: fx.GraphModule) -> Iterator[str]:
    if batch_norms_are_new(graph_module):
        yield (
            "BatchNorms: mean 0 and variance 1 everywhere, as in a network that was never trained"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_NAMES_SHOWN], *["..."] * (len(names) > _NAMES_SHOWN)])


def _describe_layers(found: list[Call]) -> Iterator[str]:
    layers = sum(call.weight_bits not in (None, FLOAT_BITS) for call in found)
    norms = sum(call.batch_norms for call in found)
    quantizers = sum(call.output_bits is not None for call in found)
    yield f"quantized layers: {layers}, activation quantizers: {quantizers}, BatchNorms: {norms}"


def _describe_taps(taps: list[str], *, ends: bool) -> str:
    """Return the line about feature taps; ``ends``: the network has ends of blocks."""
    if not taps:
        return "feature taps: none found: name them with model.taps where a term needs them"
    plain = "" if ends else "; there are no blocks: the last activation of each resolution"
    return f"feature taps: {len(taps)} ({_some(taps)}{plain})"
