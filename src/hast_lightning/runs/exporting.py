"""Exporting: the student as files, each of which is run before it gets its name.

Layers that are constructed draw their first weights, so what is translated here would move the
random streams of the run: they are put back, and a run has the same numbers with and without
files. (All of it happens on the CPU.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError, ExportError, ModelError, UserError
from hast_lightning.export.artifact import FORMATS, Network, open_artifact, write_artifact
from hast_lightning.export.description import METADATA_KEY, Description
from hast_lightning.export.frozen import freeze
from hast_lightning.export.onnx_file import open_session, write_float_onnx
from hast_lightning.export.onnx_graph import WRITING, graph_with_placeholders, require_packages
from hast_lightning.export.packed import require_storable
from hast_lightning.export.parity import latencies, prove
from hast_lightning.export.program import export_program
from hast_lightning.graph.heads import NEXT_TOKENS, head_of, logits_of, restore_head
from hast_lightning.quantization.fake_quant import activation_quantizers, quantized_layers
from hast_lightning.quantization.settings import LayerBits
from hast_lightning.records.result import ExportRecord
from hast_lightning.runs.assembly import Run

STUDENT_FILE = "student"
"""Every file's name before its suffix."""
_ENGINES = {"packed": "torch", "onnx": "onnxruntime", "program": "torch"}


class Exported(NamedTuple):
    """A record of each file there is, and the reasons why others are not."""

    records: dict[str, ExportRecord]
    failures: list[Exception]


@isolate_rng(include_cuda=False)
def require_exportable(run: Run, wanted: Collection[str] = ()) -> None:
    """Translate the untrained student to every wanted format, without writing it.

    Args:
        run: Its configuration wants some formats.
        wanted: Others that its caller may want in the end.

    Raises:
        ConfigurationError: a package that a format needs is not installed.
        ModelError: a format cannot hold this network.
    """
    formats = [name for name in FORMATS if name in (*_formats(run), *wanted)]
    if "onnx" in formats:
        require_packages(WRITING)
    if not formats:
        return
    # What it says of itself is to be read again.
    try:
        Description.from_metadata({METADATA_KEY: describe(run).to_json()}, "a file of the student")
    except ModelError as error:
        raise ConfigurationError(
            f"export.formats={formats}: no file can describe this network: {error.__cause__}; "
            "correct it, or choose export=none"
        ) from error
    student = copy.deepcopy(run.module.student)
    for quantizer in activation_quantizers(student):
        quantizer.set_range(torch.zeros(()), torch.ones(()))
    network, shape = freeze(student), run.network.input_shape
    tries: dict[str, Callable[[], object]] = {
        "packed": lambda: require_storable(network),
        "onnx": lambda: graph_with_placeholders(network, shape, run.config.export.opset),
        "program": lambda: export_program(network, shape),
    }
    for name in formats:
        try:
            tries[name]()
        except ModelError as error:
            raise ConfigurationError(
                f"export.formats={formats}: {name} cannot hold this network: {error}; leave it "
                "out, or choose export=none"
            ) from error


@isolate_rng(include_cuda=False)
def export_student(run: Run) -> Exported:
    """Write every wanted file, run it beside the student, and keep it if both agree.

    Whatever goes wrong with one file, the others are made, and nothing is raised.
    """
    records: dict[str, ExportRecord] = {}
    failures: list[Exception] = []
    formats = _formats(run)
    if not formats:
        return Exported(records, failures)
    # As the files have it, too: in another memory format convolutions add in another order, and at
    # few bits a value that rounds otherwise decides an undecided image.
    student = restore_head(copy.deepcopy(run.module.student).cpu().eval())
    student.to(memory_format=torch.contiguous_format)
    for name in formats:
        try:
            records[name] = _export(run, name, student)
        # Also a defect: the run's result is to be written first.
        except Exception as error:
            failures.append(error)
    return Exported(records, failures)


def raise_failures(failures: list[Exception]) -> None:
    """Raise what kept files from being written, in one line where the user can fix it.

    Raises:
        ExportError: one or more files could not be written, or did not agree.
        Exception: a defect of this package.
    """
    for failure in failures:
        if not isinstance(failure, UserError):
            raise failure
    if failures:
        raise ExportError("; ".join(map(str, failures))) from failures[0]


def describe(run: Run) -> Description:
    """Return the description that the run's files have."""
    network: PretrainedNetwork = run.network
    return Description(
        network=network.name,
        teacher_checksum=network.checksum,
        recipe=run.config.recipe,
        seed=run.config.seed,
        quantizer=_quantizer(run),
        input_shape=network.input_shape,
        num_classes=network.num_classes,
        mean=tuple(network.mean),
        std=tuple(network.std),
        resize_ratio=network.resize_ratio,
        class_names=network.class_names,
        output=head_of(run.module.student),
        modality=network.modality,
        front_end=network.front_end,
        outputs=network.outputs,
    )


def _quantizer(run: Run) -> dict[str, Any]:
    """Return the group of that name, with the bits that a stage gave to single layers."""
    settings = run.config.quantizer
    found = {n: layer.weight_quantizer.bits for n, layer in quantized_layers(run.module.student)}
    others = [LayerBits(n, bits) for n, bits in found.items() if bits != settings.widths.weights]
    return asdict(settings if settings.mixed else replace(settings, overrides=others))


def _formats(run: Run) -> list[str]:
    """In the order of :data:`FORMATS`: the quickest first."""
    wanted = run.config.export.formats if run.config.trains else []
    return [name for name in FORMATS if name in wanted]


def _export(run: Run, name: str, student: nn.Module) -> ExportRecord:
    path = run.folder / f"{STUDENT_FILE}{FORMATS[name].suffix}"
    unproven = path.with_name(f".unproven-{path.name}")
    try:
        write_artifact(
            name, freeze(run.module.student), describe(run), unproven, run.config.export.opset
        )
        record = _prove(run, name, unproven, student)
        unproven.replace(path)
    finally:
        unproven.unlink(missing_ok=True)
    return {**record, "file": path.name}


def _prove(run: Run, name: str, path: Path, student: nn.Module) -> ExportRecord:
    """Run the file on the images that the student was evaluated on.

    Raises:
        ExportError: it predicts something else.
    """
    network, description = open_artifact(path)
    shape = run.network.input_shape
    compared: tuple[Network, Network] = (network, student)
    if description.output == NEXT_TOKENS:
        # Positions are compared, of which classes come second.
        compared = tuple(partial(_with_classes_second, each) for each in compared)  # type: ignore[assignment]
    limits, values = run.config.export, run.network.denoises
    parity = prove(name, *compared, _images(run), shape, limits, values=values)
    first = next(_images(run))[:1].contiguous()
    milliseconds, float_milliseconds = latencies(network, _float_network(run, name), first)
    engine = _ENGINES[name]
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "images": parity.images,
        "agreement": parity.agreement,
        "compared": parity.compared,
        "deviation": parity.deviation,
        "largest_logit_difference": parity.largest_difference,
        "engine": f"{engine} {version(engine)}",
        "milliseconds": milliseconds,
        "float_milliseconds": float_milliseconds,
    }


def _with_classes_second(network: Network, texts: Tensor) -> Tensor:
    return logits_of(network(texts), NEXT_TOKENS)


def _images(run: Run) -> Iterator[Tensor]:
    """Yield batches on the CPU, ``export.images`` images in all at most."""
    left = run.config.export.images
    for images, _ in run.all_batches() or ():
        yield images[:left].cpu()
        left -= len(images)
        if left <= 0:
            return


def _float_network(run: Run, name: str) -> Network:
    """Return the full-precision network in the engine of the format ``name``."""
    network = restore_head(copy.deepcopy(run.network.network).cpu().eval())
    if name == "program":
        return export_program(network, run.network.input_shape).module()
    if name != "onnx":
        return network
    path = run.folder / f".float{FORMATS[name].suffix}"
    try:
        write_float_onnx(network, run.network.input_shape, path)
        return open_session(path)[0]
    finally:
        path.unlink(missing_ok=True)
