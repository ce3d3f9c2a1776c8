"""The command of a study: it carries out runs one after the other, and goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from experiments.choice import handed_back_now

SCRATCH = Path(__file__).resolve().parents[1] / "scratch"
Run = tuple[str, Sequence[str]]
"""Name and words of a run."""


def command(
    description: str | None,
    study: Path,
    runs: Callable[[], Iterable[Run]],
    files: Callable[[], Sequence[Path]],
    *,
    images: Callable[[str], Run | None] = lambda name: None,
    more: Callable[[str], Sequence[str]] = lambda name: (),
    table: Callable[[], None] | None = None,
) -> None:
    """Be the command of a study: ``run``, with the beginnings of names or for all, or ``table``.

    Args:
        description: For ``--help``.
        study: Folder with ``results``, where ``result.json`` and ``config.yaml`` are kept.
        runs: Name and words of each.
        files: Weights and data, which the words name without a folder.
        images: The run that makes the images of the one of a name, and has no results; carried
            out first where it was not yet.
        more: Words that depend on what was run before, by the name of the run.
        table: Prints what the results say; none: what each stage left.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("wanted", nargs="*", help="what names of runs begin with; none: all")
    given = parser.parse_args()
    if given.what == "table":
        (partial(print_stages, study) if table is None else table)()
    else:
        wanted = tuple(given.wanted) or ("",)
        chosen = [run for run in runs() if run[0].startswith(wanted)]
        if not chosen:
            parser.error(f"no run begins with {' or '.join(wanted)}")
        carry_out(chosen, study, files(), images=images, more=more)


def files_in(variable: str, *names: str) -> Callable[[], list[Path]]:
    """Return what gives files of the folder that a variable of the environment names."""
    return lambda: [Path(os.environ[variable]).resolve() / name for name in names]


def carry_out(
    runs: Iterable[Run],
    study: Path,
    files: Sequence[Path],
    *,
    images: Callable[[str], Run | None] = lambda name: None,
    more: Callable[[str], Sequence[str]] = lambda name: (),
) -> None:
    """Go through the runs that have no result yet; what each leaves is kept in the study.

    A run that is refused leaves no result, and a line. A run that was killed goes on at its last
    checkpoint. Who ends a run ends the study. Arguments are those of ``command``.
    """
    results, folder = study / "results", SCRATCH / study.name
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for file in files:
        if not Path(file.name).exists():
            Path(file.name).symlink_to(file)
    for name, words in runs:
        if (results / name / "result.json").exists():
            continue
        made, load = images(name), []
        if made is not None:
            bank = Path(made[0], "samples.safetensors")
            load = [f"sources.bank.load={bank}"]
            if not bank.exists():
                _clear(made[0])
                _run(*made)
        # Before `more` looks for images: what a refused run has left is not to be taken.
        _clear(name)
        _run(name, [*words, *load, *more(name)])
        if Path(name, "result.json").exists():
            (results / name).mkdir(parents=True, exist_ok=True)
            for kept in ("result.json", "config.yaml"):
                shutil.copy(Path(name, kept), results / name / kept)


def _clear(name: str) -> None:
    """Remove what a run has left that cannot go on."""
    if not _has_checkpoint(name):
        shutil.rmtree(name, ignore_errors=True)


def _has_checkpoint(name: str) -> bool:
    return any(Path(name).glob("last*.ckpt"))


def _run(name: str, words: Sequence[str]) -> None:
    from hast_lightning.cli.main import main
    from hast_lightning.errors import INTERRUPTED_STATUS, TERMINATED_STATUS

    print(name, flush=True)
    begin = [f"resume={name}"] if _has_checkpoint(name) else [*words, f"hydra.run.dir={name}"]
    sys.argv = ["hast-lightning", *begin]
    try:
        main()
    except SystemExit as end:
        if end.code in (INTERRUPTED_STATUS, TERMINATED_STATUS):
            raise


def print_stages(study: Path) -> None:
    """Print what each stage of a run left: top-1, agreement, the error without labels."""
    for path in sorted(study.glob("results/*/result.json")):
        result = json.loads(path.read_text())
        now = handed_back_now(result)
        print(f"{path.parent.name}, handed back: {result['kept_stage']}, now: {now}")
        for name, found in result["judged"].items():
            truth, error = found["evaluation"], found["reference"]["error"]
            top1, agreement = truth["top1"], truth["agreement"]
            print(f"  {name}: {top1:.2f}, agreement {agreement:.2f}, error {error:.3f}")
