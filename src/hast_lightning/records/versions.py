"""Versions, device, memory and commit of a run."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import hast_lightning

PACKAGES = (
    "torchvision",
    "lightning",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "numpy",
    "safetensors",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Return versions of Python, this package and all that can change its numbers, by name.

    Packages that are not installed are left out; ``cuda`` is the toolkit torch was built with.
    """
    found = {
        "python": platform.python_version(),
        "hast_lightning": hast_lightning.__version__,
        # With the build (e.g. +cpu), which the package metadata does not always tell.
        "torch": str(torch.__version__),
    }
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_memory_bytes(device: torch.device | str) -> int | None:
    """Return the peak memory of this process in bytes.

    On CUDA the peak of what tensors occupied on ``device``, elsewhere the peak resident set
    of the process (none on Windows, which does not report it).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * resident_set_unit(sys.platform)


def resident_set_unit(system: str) -> int:
    """Return the bytes in a unit of ``ru_maxrss``: macOS counts bytes, Linux and the BSDs KiB."""
    return 1 if system == "darwin" else 1024


def device_name(device: torch.device | str) -> str:
    """Return a name of ``device``: the GPU's model, or the CPU's with its threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{_cpu_model()} ({torch.get_num_threads()} threads)"
    return f"{device.type} on {platform.machine()}"


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model of the CPU where the system tells it, else its architecture."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip() not in ("", "unknown"):
                return value.strip()
    return platform.processor() or platform.machine() or "cpu"


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, none elsewhere.

    Ends in ``-dirty`` when tracked files have changes that are not committed.
    """
    source = Path(__file__)
    # An installed copy can lie inside an unrelated repository: that one's commit says nothing.
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    return _git(source.parent, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a reading git command; none when it fails or git is not installed."""
    # Without optional locks it never stands in the way of a commit made at the same time.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
