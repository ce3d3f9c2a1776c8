"""Files that a run took in and made, as artifacts whose lineage wandb draws."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from hast_lightning.records.folder import SAMPLES_FILE

SAMPLES = "samples"
MODELS = {".safetensors": "packed-model", ".onnx": "onnx-model", ".pt2": "program"}
"""What a file in a run folder is, by its suffix, if it is not the samples."""
_DIGITS = 12
_LONGEST = 128
"""Characters of a name that wandb takes."""


@dataclass(frozen=True)
class RunFile:
    """A file of a run that others may go on from.

    Attributes:
        path: Where it lies.
        kind: ``samples`` or one of :data:`MODELS`.
        digest: SHA-256 of its content.
    """

    path: Path
    kind: str
    digest: str


def run_files(folder: Path) -> list[RunFile]:
    """Return the samples and models in a run folder and in folders of it, by name.

    Args:
        folder: The run folder.
    """
    return [
        RunFile(path, kind, sha256(path))
        for path in sorted(folder.rglob("*"))
        if (kind := _kind(path, folder)) is not None
    ]


def _kind(path: Path, folder: Path) -> str | None:
    inside = path.relative_to(folder).parts
    # What loggers keep of a run is no file of the run; a dot begins what is being written.
    if not path.is_file() or inside[0] in ("wandb", "tensorboard") or path.name.startswith("."):
        return None
    return SAMPLES if inside == (SAMPLES_FILE,) else MODELS.get(path.suffix)


def log_artifacts(
    loggers: Sequence[Logger],
    folder: Path,
    recipe: str,
    metadata: Mapping[str, Any],
) -> None:
    """Log what the run made: to be called when all its files are written.

    Files are not copied; wandb reads them where they lie when it uploads them.

    Args:
        loggers: Of which those of wandb count.
        folder: The run folder.
        recipe: Models are versions of an artifact that is named after it.
        metadata: Said of every artifact, in plain values.
    """
    for run in _wandb_runs(loggers):
        for file in run_files(folder):
            _log_file(run, file, recipe, metadata)


def _log_file(run: Any, file: RunFile, recipe: str, metadata: Mapping[str, Any]) -> None:
    import wandb

    name = _samples_name(file.digest) if file.kind == SAMPLES else _model_name(recipe, file.kind)
    facts = {**metadata, "sha256": file.digest}
    artifact = wandb.Artifact(_allowed(name), type=file.kind, metadata=facts)
    _add(artifact, file.path, file.kind)
    run.log_artifact(artifact)


def log_inputs(
    loggers: Sequence[Logger], samples: Path | None, checkpoint: Path | None, checksum: str
) -> None:
    """Log what the run goes on from, before it begins.

    The samples of another run are named after their content, as they were when that run logged
    them, so the two runs are connected. Offline, wandb takes no inputs: the configuration then
    names the artifacts, with the files and their digests.

    Args:
        loggers: Of which those of wandb count.
        samples: The file that the samples were loaded from, if they were.
        checkpoint: The file that the teacher's weights were loaded from, if they were.
        checksum: SHA-256 of the teacher's weights.
    """
    for run in _wandb_runs(loggers):
        for name, kind, path, digest in _inputs(samples, checkpoint, checksum):
            described = {"artifact": name, "path": str(path), "sha256": digest}
            run.config.update({f"inputs/{kind}": described}, allow_val_change=True)
            if not run.offline:
                _use(run, name, kind, path)


def _inputs(
    samples: Path | None, checkpoint: Path | None, checksum: str
) -> Iterator[tuple[str, str, Path, str]]:
    """Yield name, kind, path and digest of each."""
    if samples is not None:
        digest = sha256(samples)
        yield _samples_name(digest), SAMPLES, samples.absolute(), digest
    if checkpoint is not None:
        yield f"teacher-{checksum[:_DIGITS]}", "teacher", checkpoint.absolute(), checksum


def _use(run: Any, name: str, kind: str, path: Path) -> None:
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    if kind == SAMPLES:  # with its content, as the run that made it logged it
        _add(artifact, path, kind)
    else:
        artifact.add_reference(path.as_uri())
    run.use_artifact(artifact)


def _add(artifact: Any, path: Path, kind: str) -> None:
    """Add a file as it lies there, uncopied; samples by one name, so that equal ones are one."""
    name = f"{SAMPLES}{path.suffix}" if kind == SAMPLES else path.name
    artifact.add_file(str(path), name, policy="immutable", skip_cache=True)


def _wandb_runs(loggers: Sequence[Logger]) -> list[Any]:
    return [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]


def _model_name(recipe: str, kind: str) -> str:
    """Return the name of a model; of a recipe that is too long for one a digest tells the rest."""
    if len(recipe) + 1 + len(kind) > _LONGEST:
        digest = hashlib.sha256(recipe.encode("utf-8", "backslashreplace")).hexdigest()[:8]
        recipe = f"{recipe[: _LONGEST - len(kind) - 10]}-{digest}"
    return f"{recipe}-{kind}"


def _samples_name(digest: str) -> str:
    return f"{SAMPLES}-{digest[:_DIGITS]}"


def _allowed(name: str) -> str:
    """Return ``name`` in the characters that names of artifacts may have."""
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
