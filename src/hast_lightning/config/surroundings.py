"""What surrounds the method: the groups ``data``, ``trainer``, ``logger`` and ``callbacks``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from hast_lightning.core.checks import expand_home, require_choice, require_range
from hast_lightning.errors import ConfigurationError

DATA_SOURCES = ("digits", "npz", "cifar10", "imagenet", "wav", "none", "given")
LOGGERS = ("csv", "wandb", "tensorboard")
STRATEGIES = ("auto", "ddp")
_STAGES = "the stages say how long a run is: schedule=..., order=[...]"
_LOOP = "a run is one epoch of steps without a validation loop; callbacks.evaluate_every_n_steps=N"
CONTRADICTIONS = {
    **dict.fromkeys(("max_epochs", "max_steps", "min_epochs", "min_steps", "max_time"), _STAGES),
    **dict.fromkeys(("limit_train_batches", "overfit_batches"), _STAGES),
    **dict.fromkeys(
        (
            *("val_check_interval", "check_val_every_n_epoch", "limit_val_batches"),
            *("limit_test_batches", "limit_predict_batches", "num_sanity_val_steps"),
            "inference_mode",
        ),
        _LOOP,
    ),
    "fast_dev_run": "+debug=fast makes a run of a few steps",
    "accumulate_grad_batches": "trainer.micro_batch=N does the same in a student step",
    "gradient_clip_val": "stages.<name>.optimizer.clip_norm does it, by stage",
    "gradient_clip_algorithm": "stages.<name>.optimizer.clip_norm does it, by stage",
    "enable_checkpointing": "callbacks.checkpoint_every_n_steps=N says how often",
    "enable_progress_bar": "callbacks.progress=false leaves it out",
    "enable_model_summary": "command=inspect shows the network",
    "use_distributed_sampler": "there is no data set to be sampled from",
    "reload_dataloaders_every_n_epochs": "there is no data set to be read again",
    "default_root_dir": "hydra.run.dir=... is the folder of the run",
    "logger": "logger=..., and logger.others for further ones",
    "callbacks": "trainer.callbacks=[...]",
    "plugins": "trainer.precision=... and trainer.strategy=... choose them",
    "barebones": "a run needs its loggers and callbacks",
    **{
        name: f"trainer.{name}=..."
        for name in ("accelerator", "devices", "num_nodes", "precision", "strategy")
    },
    "log_every_n_steps": "trainer.log_every_n_steps=N",
}
"""Arguments of Lightning's Trainer that contradict the loop of a run, and what to do instead."""
AUTO = "auto"
FLOAT32 = "32-true"
PRECISIONS = (FLOAT32, "bf16-mixed", "16-mixed", AUTO)


@dataclass
class DataConfig:
    """Evaluation data; nothing here is ever trained on."""

    source: str = MISSING
    """``digits`` (bundled), ``npz``, ``cifar10``, ``imagenet`` (a folder a class), ``wav``
    (recordings, a folder a class) or ``none``; ``given`` to :func:`hast_lightning.quantize` in
    Python."""
    path: str | None = None
    """File or folder of the images, for the sources that read one."""
    batch_size: int = 256
    """Images of a pass of the evaluation."""
    holdout: float = 0.0
    """Share of the image bank kept from training, to measure agreement on (``data=none``)."""

    def __post_init__(self) -> None:
        require_choice("data.source", self.source, DATA_SOURCES)
        self.path = expand_home(self.path)
        if self.path is not None and self.source in ("digits", "none", "given"):
            raise ConfigurationError(
                f"data.path={self.path}: data={self.source} reads no files; choose data=npz, "
                "data=cifar10, data=imagenet or data=wav to use it"
            )
        require_range("data.batch_size", self.batch_size, 1)
        require_range("data.holdout", self.holdout, 0, 0.5)
        if self.source == "none":
            require_range("data.holdout", self.holdout, 0, open_minimum=True)


@dataclass
class TrainerConfig:
    """Device, precision and the options that change speed and not results.

    With several devices the batch sizes are those of each: the effective ones are that many
    times as large.
    """

    accelerator: str = "auto"
    """``auto``, ``cpu``, ``gpu`` or another name that Lightning knows."""
    devices: int = 1
    """Devices a node; on a CPU, processes."""
    num_nodes: int = 1
    """Machines that work on the run together."""
    timeout_minutes: float = 10.0
    """Minutes that a process waits for the others before the run ends in an error."""
    precision: str = AUTO
    """What the networks compute in; ``16-mixed`` scales the losses. Fake quantization, statistics
    and losses are float32 in any case. ``auto``: ``bf16-mixed`` for pictures where the device
    multiplies it in hardware, else ``32-true``; the run says which, and goes on with it after a
    resume."""
    channels_last: bool = False
    """Memory layout of images and features: faster for many networks, the same results."""
    compile: bool = False
    """torch.compile the teacher's and the student's passes."""
    micro_batch: int | None = None
    """Images of a student step that go through the networks at once; the gradients of the parts
    are accumulated to those of the whole batch. None: all. Refused where a term of the student is
    no mean over samples."""
    halve_on_out_of_memory: bool = False
    """Halve the micro-batch where a student step does not fit into memory, and go on; where a term
    of the student is no mean over samples the run ends."""
    threads: int | None = None
    """CPU threads of torch; none: torch's own choice."""
    log_every_n_steps: int = 10
    """Iterations between two lines of metrics.csv."""
    strategy: str = "auto"
    """``auto`` or ``ddp``, which is what several devices have in any case."""
    callbacks: Annotated[list[Any], "list of mappings"] = field(default_factory=list)
    """Further callbacks of Lightning, each a mapping of ``_target_`` and its arguments. Only what
    the command line names is made: ``trust=[...]``."""
    # Of a typed mapping Hydra would want a plus before every key.
    arguments: Annotated[Any, "mapping or null"] = None
    """Further arguments of Lightning's Trainer, by name: ``profiler: simple``, ``detect_anomaly:
    true``; those that contradict the stages are refused."""

    def __post_init__(self) -> None:
        require_range("trainer.devices", self.devices, 1)
        require_range("trainer.num_nodes", self.num_nodes, 1)
        require_range(
            "trainer.timeout_minutes", self.timeout_minutes, 0, 24 * 60, open_minimum=True
        )
        require_choice("trainer.precision", self.precision, PRECISIONS)
        if self.strategy not in STRATEGIES:
            raise ConfigurationError(
                f"trainer.strategy={self.strategy} is none of {', '.join(STRATEGIES)}: every "
                "process has student and sources whole, averages their gradients itself, and "
                "writes files when it ends"
            )
        if not isinstance(self.arguments, dict | None):
            raise ConfigurationError(
                f"trainer.arguments={self.arguments!r} is no mapping, such as {{profiler: simple}}"
            )
        self.arguments = {} if self.arguments is None else self.arguments
        for name in self.arguments:
            if name in CONTRADICTIONS:
                raise ConfigurationError(f"trainer.arguments.{name}: {CONTRADICTIONS[name]}")
        require_range("trainer.log_every_n_steps", self.log_every_n_steps, 1)
        if self.micro_batch is not None:
            require_range("trainer.micro_batch", self.micro_batch, 1)
        if self.threads is not None:
            require_range("trainer.threads", self.threads, 1)


@dataclass
class LoggerConfig:
    """A logger beside metrics.csv, which is always written."""

    name: str = "csv"
    """What logs beside metrics.csv; ``csv``: nothing."""
    project: str = "hast-lightning"
    """wandb: the project that the run belongs to."""
    entity: str | None = None
    """wandb: user or team; none: the account's own."""
    group: str | None = None
    """Runs of one group are shown together (``wandb``); none: the sweep's folder, or the recipe."""
    run_name: str | None = None
    """What the run is called (``wandb``); none: the recipe and the run folder, and in a sweep what
    makes the job differ."""
    tags: list[str] = field(default_factory=list)
    """Beside those that the run gets by itself (``wandb``)."""
    others: Annotated[list[Any], "list of mappings"] = field(default_factory=list)
    """Further loggers of Lightning (MLflow, Comet, your own), each a mapping of ``_target_`` and
    its arguments. Only what the command line names is made: ``trust=[...]``."""
    artifacts: bool = True
    """Log the samples and the exported models as artifacts (``wandb``)."""

    def __post_init__(self) -> None:
        require_choice("logger.name", self.name, LOGGERS)


@dataclass
class CallbacksConfig:
    """What happens beside training."""

    progress: bool = True
    """Show a progress bar."""
    checkpoint_every_n_steps: int = 1000
    """Iterations between checkpoints."""
    checkpoint_every_n_minutes: float = 10.0
    """A checkpoint is written when the first of the two intervals is over."""
    checkpoints_kept: int = 2
    """Checkpoints in the run folder: the last, and those before it."""
    evaluate_every_n_steps: int = 0
    """Student steps between evaluations that are only logged; 0: none."""
    grid_images: int = 32
    """Images in the PNG grid of synthetic samples, and in those that a logger shows."""
    media_every_n_steps: int = 500
    """Steps of a stage between pictures, histograms and tables for a logger that shows them, which
    also come at the end of every stage and at steps 1, 4, 16, 64, ... of making images; 0: none at
    all."""

    def __post_init__(self) -> None:
        require_range("callbacks.checkpoint_every_n_steps", self.checkpoint_every_n_steps, 1)
        require_range(
            "callbacks.checkpoint_every_n_minutes",
            self.checkpoint_every_n_minutes,
            0,
            open_minimum=True,
        )
        require_range("callbacks.checkpoints_kept", self.checkpoints_kept, 1)
        require_range("callbacks.evaluate_every_n_steps", self.evaluate_every_n_steps, 0)
        require_range("callbacks.grid_images", self.grid_images, 1)
        require_range("callbacks.media_every_n_steps", self.media_every_n_steps, 0)
