"""Lightning's trainer, as a run needs it: one epoch of ticks, on one device or many."""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from hast_lightning.config import FLOAT32, TrainerConfig
from hast_lightning.config.unknown import did_you_mean
from hast_lightning.errors import ConfigurationError
from hast_lightning.runtime.loss_scaling import PRECISION as FLOAT16
from hast_lightning.runtime.loss_scaling import LossScaling


class RankParallel(DDPStrategy):
    """One process a device, whose module averages its gradients itself.

    The wrapper of PyTorch's DistributedDataParallel is left out. It expects one backward pass a
    forward pass and every parameter in each, where a student step here has two of both and a
    generator step trains other parameters; and it would make rank 0's buffers win, so the
    activation ranges of all others would be lost.
    """

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


def build_trainer(
    options: TrainerConfig,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    folder: Path = Path(),
) -> Trainer:
    """Return the trainer of a run."""
    parallel = options.devices * options.num_nodes > 1 or options.strategy == "ddp"
    timeout = timedelta(minutes=options.timeout_minutes)
    scaled = options.precision == FLOAT16
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=RankParallel(timeout=timeout) if parallel else "auto",
        # A plugin takes the place of the name: Lightning would quietly make bfloat16 of float16
        # on a CPU.
        plugins=[LossScaling(_device_type(options))] if scaled else None,
        precision=None if scaled else options.precision,  # type: ignore[arg-type]  # of the schema
        # One epoch of as many ticks as the schedule has iterations: max_steps would count
        # every optimizer's steps together.
        max_epochs=1,
        logger=list(loggers),
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=options.log_every_n_steps,
        **options.arguments,
    )


def _device_type(options: TrainerConfig) -> str:
    """Return the type of device that the trainer makes of ``auto``, without starting one."""
    if options.accelerator in ("cpu", "mps"):
        return options.accelerator
    if options.accelerator in ("gpu", "cuda") or torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


CPU_INFORMATION = Path("/proc/cpuinfo")
MATRIX_UNITS, VECTOR_UNITS = "amx_bf16", "avx512_bf16"
"""What torch calls the instructions of a CPU that multiply bfloat16."""
WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Limits of oneDNN below such instructions."""


def fastest_precision(options: TrainerConfig) -> str:
    """Return ``bf16-mixed`` where the device has units for it, else ``32-true``.

    These are GPUs with bfloat16, CPUs with AMX, and those of AMD with AVX512_BF16, unless oneDNN's
    own variable ``ONEDNN_MAX_CPU_ISA`` forbids those; others convert it, which takes longer than it
    saves. Steps on Intel's vectors are slower in it than in float32 (``benchmarks/README.md``).
    """
    device = _device_type(options)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if device == "cuda":
        units = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    else:
        # Newer than the oldest supported torch.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        there = capabilities.get(MATRIX_UNITS) or (capabilities.get(VECTOR_UNITS) and _is_of_amd())
        units = device == "cpu" and there and limit not in WITHOUT_BFLOAT16
    return "bf16-mixed" if units else FLOAT32


def _is_of_amd() -> bool:
    """Return whether AMD made the processor, by what Linux says of it, or else the platform."""
    if CPU_INFORMATION.is_file():
        return "AuthenticAMD" in CPU_INFORMATION.read_text(errors="replace")
    return "AuthenticAMD" in platform.processor()


def is_first_process() -> bool:
    """Return whether this process writes the files, known before the processes have met."""
    # Lightning's own reading of the launchers' environment variables.
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


def require_device(options: TrainerConfig) -> None:
    """Have the trainer look for the device before anything is loaded.

    Raises:
        ConfigurationError: there is no such device, or it cannot do what is asked for.
    """
    known = inspect.signature(Trainer).parameters
    for name in options.arguments:
        if name not in known:
            raise ConfigurationError(
                f"trainer.arguments.{name} is no argument of Lightning's Trainer"
                f"{did_you_mean(name, list(known))}"
            )
    try:
        build_trainer(options)
    # What Lightning raises for options it does not know, a device that is not there, or one whose
    # package is not installed.
    except (MisconfigurationException, ValueError, RuntimeError, ModuleNotFoundError) as error:
        reason = " ".join(str(error).split())
        settings = f"trainer.accelerator={options.accelerator} trainer.devices={options.devices}"
        others = f" trainer.arguments={options.arguments}" if options.arguments else ""
        raise ConfigurationError(
            f"{settings} trainer.precision={options.precision}{others}: {reason}"
        ) from error
