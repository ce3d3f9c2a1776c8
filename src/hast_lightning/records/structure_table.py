"""The tables of ``command=inspect``: a network, what quantizing it changes, and the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from hast_lightning.quantization.structure import Call
from hast_lightning.records.printing import as_it_is
from hast_lightning.records.results_table import readable_size

_SUFFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))
_NONE = "-"


@dataclass(frozen=True)
class PartRow:
    """A term or a transform of a stage, as a row.

    Attributes:
        name: What it is called in the stage.
        weight: Of a term; empty for a transform.
        needs: What it wants to see.
    """

    name: str
    weight: str
    needs: str


def structure_table(title: str, calls: Sequence[Call]) -> Table:
    """Return one row a call; what follows a layer directly is in the layer's row.

    Args:
        title: Names the network and the bits.
        calls: In order of execution.
    """
    table = Table(
        title=as_it_is(title, "table.title"),
        caption="bits: W weights, in input, out output; 32 and - are floating point",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        # Narrow, so that nine columns fit into 80 characters.
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", overflow="fold", min_width=16)
    table.add_column("operations", overflow="fold", min_width=12)
    for name in ("output", "params", "MACs", "W", "in", "out"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tap", no_wrap=True)
    for call in calls:
        table.add_row(*map(as_it_is, _cells(call)))
    return table


def _cells(call: Call) -> list[str]:
    weighted = call.weight_bits is not None
    return [
        call.name,
        " ".join(call.operations),
        "x".join(map(str, call.output_shape)),
        readable_count(call.parameters) if call.parameters else "",
        readable_count(call.multiplications) if weighted else "",
        str(call.weight_bits) if weighted else "",
        str(call.input_bits) if weighted else "",
        _NONE if call.output_bits is None else str(call.output_bits),
        "tap" if call.tap else "",
    ]


def totals_table(
    calls: Sequence[Call], parameters: int, float_bytes: int, quantized_bytes: int
) -> Table:
    """Return full precision beside the quantized network: parameters, MACs, bit-operations, size.

    Args:
        calls: In order of execution.
        parameters: Of the whole network.
        float_bytes: Size in full precision.
        quantized_bytes: Size with weights in their bits.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("one image", no_wrap=True)
    for name in ("full precision", "quantized"):
        table.add_column(name, justify="right", no_wrap=True)
    multiplications = readable_count(sum(call.multiplications for call in calls))
    before = sum(call.float_bit_operations for call in calls)
    after = sum(call.bit_operations for call in calls)
    operations = f"{readable_count(after)} ({before / max(after, 1):.1f}x fewer)"
    size = f"{readable_size(quantized_bytes)} ({float_bytes / quantized_bytes:.1f}x smaller)"
    table.add_row("parameters", readable_count(parameters), "the same")
    table.add_row("multiply-accumulates", multiplications, "the same")
    table.add_row("bit-operations", readable_count(before), operations)
    table.add_row("size", readable_size(float_bytes), size)
    return table


StageRow = tuple[str, str, str, Sequence[PartRow]]
"""Name, steps and source of a stage, and its parts that are on."""


def method_table(title: str, stages: Sequence[StageRow]) -> Table:
    """Return what the stages do and what their parts need.

    Args:
        title: Names the method and the budget.
        stages: In order: name, steps, source, and the parts that are on.
    """
    table = Table(
        title=as_it_is(title, "table.title"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("stage", overflow="fold")
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("source", overflow="fold")
    table.add_column("term or transform", overflow="fold")
    table.add_column("weight", justify="right", no_wrap=True)
    table.add_column("needs", overflow="fold")
    for name, steps, source, parts in stages:
        heads = [(name, steps, source), *[("", "", "")] * len(parts)]
        rows = parts or [PartRow("", "", "")]
        for head, part in zip(heads, rows, strict=False):
            table.add_row(*map(as_it_is, (*head, part.name, part.weight, part.needs)))
    return table


def readable_count(count: int) -> str:
    """Return ``count`` with three digits and a suffix: ``1_234_567`` is ``1.23M``."""
    for unit, suffix in _SUFFIXES:
        # What would be rounded up to the next unit belongs to it.
        if count >= 0.9995 * unit:
            value = count / unit
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{suffix}"
    return str(count)
