"""What surrounds the method: the groups ``data``, ``trainer``, ``logger`` and ``callbacks``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from hast_lightning.core.checks import expand_home, require_choice, require_range
from hast_lightning.errors import ConfigurationError

DATA_SOURCES = ("digits", "npz", "cifar10", "imagenet", "none", "given")
LOGGERS = ("csv", "wandb", "tensorboard")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass
class DataConfig:
    """Evaluation data; nothing here is ever trained on."""

    source: str = MISSING
    """``digits`` (bundled), ``npz``, ``cifar10``, ``imagenet`` (a folder a class) or ``none``;
    ``given`` to :func:`hast_lightning.quantize` in Python."""
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
                "data=cifar10 or data=imagenet to use it"
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
    precision: str = "32-true"
    """What the networks compute in; ``16-mixed`` scales the losses. Fake quantization, statistics
    and losses are float32 in any case."""
    channels_last: bool = False
    """Memory layout of images and features: faster for many networks, the same results."""
    compile: bool = False
    """torch.compile the teacher's and the student's passes."""
    micro_batch: int | None = None
    """Images of a student step that go through the networks at once; the gradients of the parts
    are accumulated to those of the whole batch. None: all."""
    halve_on_out_of_memory: bool = False
    """Halve the micro-batch where a student step does not fit into memory, and go on."""
    threads: int | None = None
    """CPU threads of torch; none: torch's own choice."""
    log_every_n_steps: int = 10
    """Iterations between two lines of metrics.csv."""

    def __post_init__(self) -> None:
        require_range("trainer.devices", self.devices, 1)
        require_range("trainer.num_nodes", self.num_nodes, 1)
        require_range(
            "trainer.timeout_minutes", self.timeout_minutes, 0, 24 * 60, open_minimum=True
        )
        require_choice("trainer.precision", self.precision, PRECISIONS)
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
