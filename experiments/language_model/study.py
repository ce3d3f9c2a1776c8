"""Round the weights of stories260K by GPTQ on several kinds of text, and print the table.

``LANGUAGE=<folder> python -m experiments.language_model.study run`` goes through the runs that have
no result yet; ``... table`` prints what they say. ``$LANGUAGE`` holds the three files that
README.md names.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

from experiments.language_model.tokenizer import write
from experiments.resumable import SCRATCH, command

HERE = Path(__file__).resolve().parent
COMMON = (
    *("model=own", "model.factory=experiments.language_model.llama:stories260k"),
    *("model.name=stories260k", "model.checkpoint=stories260k.safetensors"),
    *("model.modality=tokens", "model.input_size=512", "data=npz", "data.path=test.npz"),
    *("data.batch_size=2", "method=self_calibration_style", "quantizer=minmax"),
    *("quantizer.activation_bits=null", "stages.rounding.batch_size=2"),
    *("safeguard.images=4", "trainer=cpu", "trainer.threads=1"),
    *("callbacks.progress=false", "report=false", "export=none"),
)
TEXTS = "sources.text.size=32"
SOURCES: dict[str, tuple[str, ...]] = {
    "own": (TEXTS,),
    "real": ("source@sources.text=text_file", "sources.text.path=text.npz", TEXTS),
    "random": ("source@sources.text=random_tokens", TEXTS),
}
NEAREST = (TEXTS, "order=[calibration]")
LEARNED = (
    *(TEXTS, "rounding@quantizer.rounding=adaptive", "order=[calibration,reconstruction]"),
    *("stages.reconstruction.trains=rounding", "stages.reconstruction.samples=32"),
    *("stages.reconstruction.batch_size=2", "schedule.unit_steps=100"),
)
DISTILLED = (
    *(TEXTS, "rounding@quantizer.rounding=nearest", "order=[calibration,distillation]"),
    *("schedule.student_steps=200", "schedule.student_batch=2"),
)
"""Two more ways to use own text: block by block, and the whole network at once."""
LONGER = "schedule.student_steps=800"
BITS, SEEDS = (4, 3), range(5)


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of every run."""
    for bits in BITS:
        yield f"nearest_w{bits}_seed0", [*words(bits, 0), *NEAREST]
    for seed in SEEDS:
        for bits in BITS:
            for source, more in SOURCES.items():
                yield f"{source}_w{bits}_seed{seed}", [*words(bits, seed), *more]
    for seed in SEEDS[:2]:
        for source in ("own", "real"):
            more = (*SOURCES[source], "quantizer.group_size=32")
            yield f"{source}_groups_w3_seed{seed}", [*words(3, seed), *more]
    for bits in BITS:
        yield f"learned_w{bits}_seed0", [*words(bits, 0), *LEARNED]
        for seed in SEEDS[:3]:
            yield f"distilled_w{bits}_seed{seed}", [*words(bits, seed), *DISTILLED]
    yield "distilled_longer_w3_seed0", [*words(3, 0), *DISTILLED, LONGER]
    yield "nearest_groups_w3_seed0", [*words(3, 0), *NEAREST, "quantizer.group_size=32"]


def words(bits: int, seed: int) -> list[str]:
    """Return what the runs of a width and a draw have in common."""
    return [*COMMON, f"quantizer.weight_bits={bits}", f"seed={seed}"]


def table() -> None:
    """Print a row for each kind of text and width: mean and deviation over the draws."""
    found: dict[str, list[dict[str, float]]] = {}
    for name, _ in runs():
        path = HERE / "results" / name / "result.json"
        if path.exists():
            found.setdefault(name.rsplit("_seed", 1)[0], []).append(json.loads(path.read_text()))
    print("| text | draws | perplexity | next token the same, % | size, KB |")
    print("| --- | --- | --- | --- | --- |")
    for name, results in sorted(found.items(), key=lambda item: item[0].rsplit("_w", 1)[::-1]):
        cells = [
            _mean([r["quantized_perplexity"] for r in results], 3),
            _mean([r["teacher_agreement"] for r in results], 2),
            f"{results[0]['quantized_bytes'] / 1e3:.0f}",
        ]
        print("|", " | ".join([name, str(len(results)), *cells]), "|")


def _mean(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def files() -> list[Path]:
    """Return the weights, and write the texts where the runs find them."""
    source, folder = Path(os.environ["LANGUAGE"]), SCRATCH / HERE.name
    folder.mkdir(parents=True, exist_ok=True)
    write(source, folder)
    return [source / "stories260k.safetensors"]


if __name__ == "__main__":
    command(__doc__, HERE, runs, files, table=table)
