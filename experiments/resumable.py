"""Carry out the runs of a study one after the other, and go on where that was stopped."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

SCRATCH = Path(__file__).resolve().parents[1] / "scratch"


def carry_out(
    runs: Iterable[tuple[str, Sequence[str]]],
    study: Path,
    files: Sequence[Path],
    more: Callable[[str], Sequence[str]] = lambda name: (),
) -> None:
    """Go through the runs that have no result yet; what each leaves is kept in the study.

    A run that is refused leaves no result, and a line. A run that was killed goes on at its last
    checkpoint. Who ends a run ends the study.

    Args:
        runs: Name and words of each.
        study: Folder with ``results``, where ``result.json`` and ``config.yaml`` are kept.
        files: Weights and data, which the words name without a folder.
        more: Words that depend on what was run before, by the name of the run.
    """
    from hast_lightning.cli.main import main
    from hast_lightning.errors import INTERRUPTED_STATUS, TERMINATED_STATUS

    results, folder = study / "results", SCRATCH / study.name
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for file in files:
        if not Path(file.name).exists():
            Path(file.name).symlink_to(file)
    for name, words in runs:
        if (results / name / "result.json").exists():
            continue
        print(name, flush=True)
        if list(Path(name).glob("last*.ckpt")):
            begin = [f"resume={name}"]
        else:
            shutil.rmtree(name, ignore_errors=True)
            begin = [*words, *more(name), f"hydra.run.dir={name}"]
        sys.argv = ["hast-lightning", *begin]
        try:
            main()
        except SystemExit as end:
            if end.code in (INTERRUPTED_STATUS, TERMINATED_STATUS):
                raise
        if Path(name, "result.json").exists():
            (results / name).mkdir(parents=True, exist_ok=True)
            for kept in ("result.json", "config.yaml"):
                shutil.copy(Path(name, kept), results / name / kept)


def print_stages(study: Path) -> None:
    """Print what each stage of a run left: top-1, agreement, the error without labels."""
    for path in sorted(study.glob("results/*/result.json")):
        result = json.loads(path.read_text())
        print(f"{path.parent.name}, handed back: {result['kept_stage']}")
        for name, found in result["judged"].items():
            truth, error = found["evaluation"], found["reference"]["error"]
            top1, agreement = truth["top1"], truth["agreement"]
            print(f"  {name}: {top1:.2f}, agreement {agreement:.2f}, error {error:.3f}")
