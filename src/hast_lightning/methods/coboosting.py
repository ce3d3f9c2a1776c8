"""Hard samples, weights of teachers and a student that improve each other (after Co-Boosting)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.optim import Optimizer

from hast_lightning.core.batch import Batch, Progress
from hast_lightning.core.checks import require_range
from hast_lightning.core.ensemble import Ensemble
from hast_lightning.core.network import FEATURES
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.core.stage import Bench, Outcome, Stage
from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError
from hast_lightning.sources.image_bank import RATE_FALLS, ImageBank
from hast_lightning.sources.latent_bank import DoublingGenerator
from hast_lightning.sources.suitability import image_shape, refuse_maps
from hast_lightning.stages.distill import Distill
from hast_lightning.stages.synthesize import Synthesize
from hast_lightning.stages.weigh_teachers import WeighTeachers

LAST_WIDTH = 64
"""Channels of the maps at the whole of the image's size."""
LEVELS = 255
"""Of a pixel that is stored in 8 bits, counted from 0."""


class PixelGenerator(DoublingGenerator):
    """Makes pixels in [0, 1] of latents.

    Source: Co-Boosting (Dai et al., ICLR 2024), released code.
    """

    widths = (128, 128)

    def __init__(self, latent_dim: int, shape: tuple[int, int, int]) -> None:
        super().__init__(latent_dim, shape)
        self.draw_afresh()

    def ending(self, channels: int) -> Sequence[nn.Module]:
        """Return two convolutions and a sigmoid."""
        return (
            nn.Conv2d(self.widths[1], LAST_WIDTH, 3, padding=1),
            nn.BatchNorm2d(LAST_WIDTH, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(LAST_WIDTH, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    @torch.no_grad()
    def draw_afresh(self) -> None:
        """Draw all weights: N(0, 0.02), those of BatchNorms N(1, 0.02); biases are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                module.weight.normal_(float(isinstance(module, nn.BatchNorm2d)), 0.02)
                if module.bias is not None:
                    module.bias.zero_()


@part("source", "hard_pool")
class HardPool(ImageBank):
    """A pool that grows by one batch at a time, each of latents and a generator drawn afresh.

    Of a batch the images of the step with the lowest loss are kept, rounded to 8 bits a pixel.
    ``data.holdout`` keeps a share of every batch from training.

    Source: Co-Boosting (Dai et al., ICLR 2024), released code: 200 batches of 128, 30 iterations
    each, latents of 256 numbers, Adam at 0.001 for latents and generator, gradients of norm 10 at
    most.
    """

    size: int = 25600
    """Images in the pool when it is full."""
    batch_size: int = 128
    """Images that are made together, by one generator."""
    iterations: int = 30
    """Optimizer steps that each batch of images gets."""
    lr: float = 1e-3
    """Learning rate of Adam, for latents and generator."""
    latent_dim: int = 256
    """Length of a latent."""
    beta1: float = 0.5
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    clip_norm: float = 10.0
    """Largest norm of the gradient, to which a longer one is shortened."""

    file_kind = "hard-pool"
    several_outputs = False

    latents: ClassVar[nn.Parameter]
    mean: ClassVar[Tensor]
    std: ClassVar[Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("latent_dim", self.latent_dim, 1)
        require_range("beta1", self.beta1, 0, 0.9999)
        require_range("beta2", self.beta2, 0, 0.9999)
        require_range("clip_norm", self.clip_norm, 0, open_minimum=True)

    def unused(self) -> Collection[str]:
        """Return how an image bank starts and lowers its rate, which here is constant."""
        return (*RATE_FALLS, "falls", "start")

    def build(self, site: Site) -> None:
        """Draw the first latents and the first generator, or read a saved pool.

        Raises:
            ConfigurationError: inputs are no pictures, several processes train, or the hold-out
                leaves nothing to train on.
            DataError: the file is missing, unreadable, or does not fit the network.
        """
        key = f"{site.key}={self.kind}"
        shape = image_shape(site.pretrained, key)
        refuse_maps(site.pretrained, key)
        if site.pretrained.modality == FEATURES:
            raise ConfigurationError(f"{key} makes pixels, and the network takes features")
        if site.processes > 1:
            raise ConfigurationError(
                f"{key} grows in one process; trainer.devices={site.processes} are not supported"
            )
        super().build(site)
        self._hold_out(site)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(site.pretrained, name)).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.register_parameter(
            "latents", nn.Parameter(torch.randn(self.batch_size, self.latent_dim))
        )
        self.generator = PixelGenerator(self.latent_dim, shape)
        # The images are no parameters here: the best of the active batch are kept as a buffer.
        del self.active
        with torch.no_grad():
            self.register_buffer("active", self._images())
        self._proposed: Tensor | None = None
        self._lowest = math.inf

    def _hold_out(self, site: Site) -> None:
        """Keep a share of every batch from training, and not the batches that come last."""
        self._kept = max(1, round(site.holdout * self.batch_size)) if site.holdout > 0 else 0
        if self._kept == self.batch_size:
            raise ConfigurationError(
                f"data.holdout={site.holdout} leaves nothing to train on of "
                f"{site.key}.batch_size={self.batch_size}"
            )
        self.held_out_count = self.count // self.batch_size * self._kept
        self.trainable_count = self.count - self.held_out_count
        self.register_buffer("permutation", torch.zeros(self.trainable_count, dtype=torch.int64))

    @property
    def trained_on(self) -> int:
        """Return the images of a batch that are not held out."""
        return self.batch_size - self._kept

    @property
    def batches(self) -> int:
        """Return the batches of the full pool."""
        return self.count // self.batch_size

    @property
    def _available(self) -> int:
        return max(self.filled // self.batch_size, 1) * self.trained_on

    def _places(self, numbers: Tensor) -> Tensor:
        """Return where in the pool the images to train on are that have these numbers."""
        size = self.trained_on
        places: Tensor = numbers // size * self.batch_size + numbers % size
        return places

    def _images(self) -> Tensor:
        images: Tensor = (self.generator(self.latents) - self.mean) / self.std
        return images

    def propose(self) -> Batch:
        """Return images (B, C, H, W), differentiable in latents and generator, and labels (B,)."""
        images = self._images()
        self._proposed = images.detach()
        return Batch(images, self.active_labels)

    def _made(self) -> Tensor:
        """Return the best images of the active batch, rounded to the levels of a pixel."""
        pixels = self.active * self.std + self.mean
        rounded: Tensor = ((pixels * LEVELS).round() / LEVELS - self.mean) / self.std
        return rounded

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Return Adam over latents and generator, which shortens long gradients."""
        trained = [self.latents, *self.generator.parameters()]
        betas = (self.beta1, self.beta2)
        optimizer = torch.optim.Adam(trained, lr=self.lr, betas=betas)

        def shorten(*_: Any) -> None:
            nn.utils.clip_grad_norm_(trained, self.clip_norm)

        # In the optimizer, where a loss scale is taken off already.
        optimizer.register_step_pre_hook(shorten)
        return {"adam": optimizer}

    def improved(self, loss: float, optimizers: Mapping[str, Optimizer]) -> Batch | None:
        """Keep the images if no step before had as low a loss; begin anew after the last step.

        Raises:
            FloatingPointError: the batch had its steps and is NaN or infinite.
        """
        if loss < self._lowest and self._proposed is not None:
            self._lowest = loss
            self.active.copy_(self._proposed)
        return super().improved(loss, optimizers)

    def _step_plateau(self, loss: float, optimizer: Optimizer) -> None:
        """Leave the rate as it is."""

    @torch.no_grad()
    def _start_fresh_batch(self, optimizer: Optimizer) -> None:
        self.latents.normal_()
        self.latents.grad = None
        self.generator.draw_afresh()
        self.active_labels.random_(self.site.pretrained.num_classes)
        self.iteration, self._lowest = 0, math.inf
        optimizer.state.clear()

    def earlier(self, batches: int, number: int) -> Batch:
        """Return one of so many parts of the first ``batches``, shuffled anew for each count.

        Args:
            batches: Batches of the pool that are gone through, from the first.
            number: Which part, from 0.
        """
        # Its own stream, so that a pass that is taken up again goes on with the same order.
        seeded = torch.Generator().manual_seed(batches)
        order = torch.randperm(batches * self.trained_on, generator=seeded)
        chosen = order[number * self.trained_on : (number + 1) * self.trained_on]
        index = self._places(chosen.to(self.labels.device))
        return Batch(self.images[index], self.labels[index])

    def held_out(self, count: int) -> Batch:
        """Return at most ``count`` of the held-out images (N, C, H, W) and labels.

        Raises:
            ConfigurationError: nothing is held out.
            DataError: the pool is not full yet.
        """
        if not (self._kept and self.full):
            return super().held_out(count)  # which says why there are none
        first, kept = self.trained_on, self._kept
        return self._spaced(
            count, self.held_out_count, lambda n: n // kept * self.batch_size + first + n % kept
        )

    def get_extra_state(self) -> dict[str, Any]:
        """Return the lowest loss of the active batch, too."""
        return {**super().get_extra_state(), "lowest": self._lowest}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        super().set_extra_state(state)
        self._lowest = float(state["lowest"])


class Turn(NamedTuple):
    """Whose turn it is: ``synthesis``, ``weighing`` or ``distillation``, and its step from 0."""

    epoch: int
    phase: str
    step: int


def turn(index: int, iterations: int) -> Turn:
    """Return whose turn step ``index`` is, from 0.

    Epoch e, from 0, has ``iterations`` steps of synthesis, e of weighing (the pool before the new
    batch) and e + 1 of distillation (the pool with it); so e of them have ``e * iterations + e^2``.
    """
    epoch = (math.isqrt(iterations**2 + 4 * index) - iterations) // 2
    step = index - epoch * iterations - epoch**2
    if step < iterations:
        return Turn(epoch, "synthesis", step)
    if step < iterations + epoch:
        return Turn(epoch, "weighing", step - iterations)
    return Turn(epoch, "distillation", step - iterations - epoch)


@part("stage", "boost")
class Boost(Stage):
    """Epochs of three phases: a batch of hard samples, the teachers' weights, and the student.

    There are as many epochs as the pool has batches. Weights move by one pass over the pool before
    the new samples join it, and not in the first epoch; a network that teaches alone has none. The
    student makes one pass over the whole pool; its rate follows the epochs, and the size of the
    teachers' steps falls with them.

    Source: Co-Boosting (Dai et al., ICLR 2024), released code. There the student is a new network
    in floating point that trains its BatchNorms, as here where nothing is quantized.
    """

    synthesis: Synthesize = MISSING
    """Makes the samples; its own ``steps`` do not count."""
    weighing: WeighTeachers = MISSING
    """Moves the weights; its own ``steps`` and ``batch_size`` do not count."""
    distillation: Distill = MISSING
    """Trains the student; its own ``steps`` and ``batch_size`` do not count."""

    trains_student = True
    float_student = True

    def unused(self) -> Collection[str]:
        """Return what follows from the pool."""
        of_phase = [f"{name}.{what}" for name in self._others for what in ("steps", "batch_size")]
        return ("synthesis.steps", *of_phase)

    _others: ClassVar = ("weighing", "distillation")

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the name of the pool."""
        return self.distillation.reads

    @property
    def improves(self) -> tuple[str, ...]:
        """Return the name of the pool."""
        return self.synthesis.improves

    @property
    def all_terms(self) -> Mapping[str, Mapping[str, Term]]:
        """Return the terms of all phases."""
        stages = (self.synthesis, self.weighing, self.distillation)
        return {name: terms for stage in stages for name, terms in stage.all_terms.items()}

    def bind(self, bench: Bench) -> None:
        """Bind the phases.

        Raises:
            UserError: something does not fit together.
        """
        if not bench.ranges_frozen:
            raise ConfigurationError(
                f"order: {self.key} trains the student, which no stage before it calibrates, as in "
                "method=coboosting_style; quantizer.bits=32 trains a new one in floating point"
            )
        phases = {name: getattr(self, name) for name in ("synthesis", *self._others)}
        for name, stage in phases.items():
            stage.place(name, f"{self.key}.{name}")
        self._alone = not isinstance(bench.teacher, Ensemble)
        bound = {n: stage for n, stage in phases.items() if n != "weighing" or not self._alone}
        for stage in bound.values():
            stage.bind(bench)
        if len({stage.source for stage in phases.values()}) > 1:
            sources = ", ".join(f"{name} has {stage.source}" for name, stage in phases.items())
            raise ConfigurationError(f"{self.key}: the phases share one source; {sources}")
        source = bench.sources[self.synthesis.source]
        if not isinstance(source, HardPool) or source.filled_by_loading:
            raise ConfigurationError(
                f"{self.key}.synthesis.source={self.synthesis.source}: {self.kind} needs a "
                "hard_pool that grows in this run"
            )
        # In a tuple, so that the stage does not register it.
        self._pool = (source,)
        # Registered, so that what their parts hold moves to the device and into checkpoints.
        self._phases = nn.ModuleList(bound.values())
        self._phase = "synthesis"

    def begin(self, bench: Bench) -> None:
        """Prepare the phases."""
        for phase in self._phases:
            phase.begin(bench)  # type: ignore[operator]

    def length(self, bench: Bench) -> int:
        """Return the steps of all epochs."""
        (pool,) = self._pool
        return pool.batches * pool.iterations + pool.batches**2

    def student_steps(self, done: int) -> int:
        """Return how many of the first ``done`` steps train the student."""
        at = turn(done, self._pool[0].iterations)
        begun = at.step if at.phase == "distillation" else 0
        return at.epoch * (at.epoch + 1) // 2 + begun

    def step(self, bench: Bench, index: int) -> Outcome:
        """Do a step of the phase whose turn it is."""
        (pool,) = self._pool
        epoch, self._phase, number = turn(index, pool.iterations)
        if self._phase == "synthesis":
            progress = Progress(self.synthesis.name, index + 1, self.length(bench))
            return self.synthesis.improve(bench, progress)
        if self._phase == "weighing":
            if self._alone:
                return Outcome()
            size = self.weighing.lr * self.weighing.decay**epoch
            return self.weighing.weigh(bench, pool.earlier(epoch, number), size)
        batch = pool.sample(pool.trained_on)
        return self.distillation.train_on(bench, epoch, pool.batches, batch)

    def memory_key(self, bench: Bench) -> tuple[str, int]:
        """Return the setting of the phase that memory was too small for."""
        if self._phase == "distillation":
            return self.distillation.memory_key(bench)
        return self.synthesis.memory_key(bench)
