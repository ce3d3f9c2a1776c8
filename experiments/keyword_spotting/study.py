"""Quantize the DS-CNN of MLPerf Tiny in several ways with one small budget, and print the table.

``KEYWORDS=<folder> python -m experiments.keyword_spotting.study run`` goes through the runs that
have no result yet; ``... table`` prints what they say. ``$KEYWORDS`` holds the two files that
README.md names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from experiments import former
from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("dscnn.safetensors", "kws01.npz")
COMMON = (
    *("model=own", "model.factory=experiments.keyword_spotting.dscnn:DSCNN", "model.name=dscnn"),
    *("model.checkpoint=dscnn.safetensors", "model.modality=features", "model.input_size=49x10"),
    *("model.mean=[83]", "model.std=[1.7102702665232845]", "data=npz", "data.path=kws01.npz"),
    *("schedule.images=256", "schedule.image_batch=128", "schedule.image_steps=120"),
    *("schedule.calibration_steps=150", "schedule.student_steps=150", "schedule.unit_steps=60"),
    *("schedule.student_batch=32", "schedule.learning_rate=cosine", "seed=0"),
    *("safeguard.images=64", "safeguard.iterations=50", "trainer=cpu", "trainer.threads=1"),
    *("callbacks.progress=false", "report=false", "export=none"),
)
"""The file has the numbers of an integer engine: ``(x - 83) / 1.71`` is what the network takes."""
BANK = "sources.bank.lr=0.1"
"""Its samples come closer to the BatchNorm statistics than at 0.5: README.md."""
FIXED = (BANK, "stages.calibration.steps=20")
"""A bank does not change while ranges are observed."""
ON_BANK = (
    *("stages.calibration.source=bank", "stages.calibration.terms.bns.enabled=false"),
    "stages.calibration.terms.cross_entropy.enabled=false",
)
"""HAST observes ranges on a generator that is trained meanwhile, for which these steps are few."""
ON_NOISE = (
    *("source@sources.bank=noise", "order=[calibration,distillation]", *ON_BANK),
    "stages.calibration.steps=20",
)
"""Noise of the learned scale, of which no two batches are alike."""
ENDS, LONGER = "quantizer.first_and_last_8bit=true", "schedule.student_steps=500"
"""MFCC of a range of 150 leave nothing of the small coefficients at 3 bits."""
RELATIVE_CLASS = "stages.synthesis.terms.hard_cross_entropy.weight=0.1"
"""Beside relative statistics, whose errors are smaller."""
FILES_TOO = ("export.formats=[packed,onnx]", "export.min_agreement=99")
METHODS: dict[str, tuple[str, ...]] = {
    "without_training": ("method=without_training", "quantizer=mse", *former.IMAGES, *FIXED),
    "deploy": ("method=without_training", "quantizer=deploy", *former.IMAGES, *FIXED, *FILES_TOO),
    "hast_adam": ("method=hast_adam", "quantizer=lsq", *FIXED, *ON_BANK),
    "hast_adam_ends8": ("method=hast_adam", "quantizer=lsq", *FIXED, *ON_BANK, ENDS, LONGER),
    "hast_adam_ends8_relative": (
        *("method=hast_adam", "quantizer=lsq", *FIXED, *ON_BANK, ENDS, LONGER),
        *("stages.synthesis.terms.bns.relative=true", RELATIVE_CLASS),
    ),
    "hast_adam_ends8_again": (
        *("method=hast_adam", "quantizer=lsq", *FIXED, *ON_BANK, ENDS, LONGER),
        *("+stage@stages.again=correct", "stages.again.source=bank"),
        "order=[synthesis,calibration,distillation,again]",
    ),
    "hast_adam_ends8_large": (
        *("method=hast_adam", "quantizer=lsq", *FIXED, *ON_BANK, ENDS),
        *("schedule.images=1024", "schedule.student_steps=2000"),
    ),
    "hast_adam_ends8_large_longer": (
        *("method=hast_adam", "quantizer=lsq", *FIXED, *ON_BANK, ENDS),
        *("schedule.images=1024", "schedule.student_steps=5000"),
    ),
    "hast_adam_ends8_on_noise": ("method=hast_adam", "quantizer=lsq", *ON_NOISE, ENDS, LONGER),
    "reconstruct": ("method=reconstruct", "quantizer=lsq", *former.IMAGES, *FIXED),
    "hast": ("method=hast", "quantizer=minmax", *FIXED, *ON_BANK),
    "gdfq": ("method=gdfq", "quantizer=minmax"),
    "dqdg_style": ("method=dqdg_style", "quantizer=minmax"),
}
BITS = (8, 4, 3)
ONLY = {"deploy": (8,), "hast_adam_ends8": (4, 3), "hast_adam_ends8_on_noise": (3,)}
ONLY |= {f"hast_adam_ends8_{kind}": (3,) for kind in ("again", "large", "large_longer")}
ONLY["hast_adam_ends8_relative"] = (4, 3)
GENERATED = ("gdfq", "dqdg_style")
"""Methods whose samples come from a generator."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of every run."""
    for method, words in METHODS.items():
        for bits in ONLY.get(method, BITS):
            yield f"{method}_w{bits}a{bits}_seed0", [*COMMON, *words, f"quantizer.bits={bits}"]


def bank_of(name: str) -> list[str]:
    """Return the word that loads samples of the same kind: they are made once for all bits."""
    own = [kind for kind in ("relative", "large") if kind in name]
    maker = f"hast_adam_ends8_{own[0]}" if own else "without_training"
    made = sorted(Path().glob(f"{maker}_w*/samples.safetensors"))
    without = name.startswith(GENERATED) or "noise" in name
    return [f"sources.bank.load={made[0]}"] if made and not without else []


def table() -> None:
    """Print one row a run."""
    print("| method | W/A | calibrated | top-1, last step | handed back | error without labels |")
    for name, _ in runs():
        path = HERE / "results" / name / "result.json"
        if path.exists():
            r = json.loads(path.read_text())
            last = list(r["judged"])[-1]
            error = r["judged"][last]["reference"]["error"]
            figures = [r["calibrated_top1"], r["quantized_top1"], r["kept_top1"]]
            cells = [*(f"{figure:.1f}" for figure in figures), f"{error:.4f}"]
            bits = f"{r['weight_bits']}/{r['activation_bits']}"
            print("|", " | ".join([name.rsplit("_w", maxsplit=1)[0], bits, *cells]), "|")


if __name__ == "__main__":
    command(__doc__, HERE, runs, files_in("KEYWORDS", *FILES), more=bank_of, table=table)
