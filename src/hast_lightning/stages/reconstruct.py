"""The stage that rebuilds the student unit by unit: each is to put out what the teacher's does.

BRECQ (Li et al., ICLR 2021), QDrop (Wei et al., ICLR 2022) and GENIE-M (Jeon et al., CVPR 2023) are
settings of it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import field
from typing import ClassVar, NamedTuple

import torch
from omegaconf import MISSING
from torch import Tensor, fx, nn, optim

from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.core.checks import MAX_RATE, require_choice, require_range
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Outcome, Stage
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ConfigurationError
from hast_lightning.graph.units import Unit, extract, find_units
from hast_lightning.quantization.adaround import AdaptiveWeightQuantizer, rounding_loss
from hast_lightning.quantization.fake_quant import (
    ActivationQuantizer,
    activation_quantizers,
    quantized_layers,
)
from hast_lightning.quantization.learned import step_parameters
from hast_lightning.runtime.ranks import average_gradients
from hast_lightning.stages.loss import active_transforms, transformed
from hast_lightning.stages.synthesize import require_source

_log = logging.getLogger(__name__)

TRAINS = ("weights", "rounding")
CHUNK = 128
"""Samples that go through a unit at once while its inputs and targets are cached."""
WARM_SHARE = 0.2
"""Share of the iterations before weights are driven to an integer (BRECQ, QDrop, GENIE)."""
FIRST_B, LAST_B = 20.0, 2.0


class _Cache(NamedTuple):
    """What one unit is rebuilt from, on the CPU.

    Attributes:
        floating: What the teacher's unit takes in, (N, ...).
        quantized: What the student's unit takes in, behind all units before it, (N, ...).
        target: What the teacher's unit puts out, (N, ...).
    """

    floating: Tensor
    quantized: Tensor
    target: Tensor


@part("stage", "reconstruct")
class Reconstruct(Stage):
    """Rebuilds the student unit by unit, so that each puts out what the teacher's unit does.

    Targets are the teacher's outputs for its own inputs; the student's unit sees inputs that are
    mixed, element by element, of the teacher's and of what the rebuilt part of the student puts
    out. Only the parameters of one unit train at a time.

    Source: GENIE-M (Jeon et al., CVPR 2023), on QDrop and BRECQ; that weights themselves may
    train, with BatchNorm scales and shifts, is ours.
    """

    source: str = MISSING
    """Name of the source that the student is rebuilt on."""
    samples: int = 1024
    """Samples of the source, as many as there are at most."""
    views: int = 1
    """Times that each sample is used, each time changed by the transforms anew."""
    transforms: dict[str, Transform] = field(default_factory=dict)
    """What changes the samples, once before the first unit."""
    iterations: int = 20000
    """Steps for each unit."""
    batch_size: int = 32
    """Samples of a step, on each device."""
    trains: str = "weights"
    """``weights``: weights, biases and BatchNorm scales and shifts; ``rounding``: whether each
    weight is rounded up or down, which needs ``rounding@quantizer.rounding=adaptive``."""
    drop: float = 0.5
    """Share of the activations that pass unquantized while a unit is rebuilt (QDrop)."""
    mix: float = 0.5
    """Share of a unit's inputs that are the student's; 1: all (BRECQ)."""
    lr: float = 1.0e-3
    """Learning rate of weights, falling to zero as a cosine, or of roundings, constant; Adam."""
    step_lr: float = 1.0e-3
    """Learning rate of learned step sizes and scales, relative to their size, as a cosine; 0:
    they stay."""
    regularization: float = 1.0
    """Weight of what drives each rounding to an integer (lambda)."""

    trains_student = True

    _student_unit: ClassVar[fx.GraphModule]

    def __post_init__(self) -> None:
        for name in ("samples", "views", "iterations", "batch_size"):
            require_range(name, getattr(self, name), 1)
        require_choice("trains", self.trains, TRAINS)
        require_range("drop", self.drop, 0, 1)
        require_range("mix", self.mix, 0, 1)
        require_range("lr", self.lr, 0, MAX_RATE, open_minimum=True)
        require_range("step_lr", self.step_lr, 0, MAX_RATE)
        require_range("regularization", self.regularization, 0)
        self._at = -1
        self._cache: _Cache | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the name of the source."""
        return (self.source,)

    def bind(self, bench: Bench) -> None:
        """Find the units, and check the source and the quantizer.

        Raises:
            UserError: there is no such source, no unit, or nothing that could be learned.
        """
        require_source(bench, self.source, self.key)
        if not bench.ranges_frozen:
            raise ConfigurationError(
                f"order: {self.name} rebuilds the student, which no stage before it calibrates"
            )
        self._units = tuple(find_units(bench.teacher.graph_module))
        layers = [layer for _, layer in quantized_layers(bench.student)]
        adaptive = any(isinstance(e.weight_quantizer, AdaptiveWeightQuantizer) for e in layers)
        if self.trains == "rounding" and not layers:
            raise ConfigurationError(
                f"{self.key}.trains=rounding, but all weights are left in floating point "
                f"(quantizer.weight_bits={FLOAT_BITS})"
            )
        if adaptive != (self.trains == "rounding"):
            wanted = "adaptive" if self.trains == "rounding" else "nearest"
            raise ConfigurationError(
                f"{self.key}.trains={self.trains} needs rounding@quantizer.rounding={wanted}"
            )
        self._transforms = active_transforms(self.transforms)
        for transform in self._transforms.values():
            transform.bind(bench.teacher, bench.learner)
        self._parts = nn.ModuleList(self._transforms.values())

    def length(self, bench: Bench) -> int:
        """Return the iterations of all units together."""
        return len(self._units) * self.iterations

    def begin(self, bench: Bench) -> None:
        """Draw the seed that views are made by, which a resumed run finds again."""
        self._seed = int(torch.randint(2**31, ()))

    def step(self, bench: Bench, index: int) -> Outcome:
        """Do one iteration for the unit whose turn it is."""
        number, iteration = divmod(index, self.iterations)
        unit = self._units[number]
        if self._at != number:
            self._enter(bench, number)
        assert self._cache is not None
        student = self._student_unit
        stepper = bench.stepper(f"{self.key}.unit", lambda: self._optimizers(student))
        for name, optimizer in stepper.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rate(name, iteration)
        inputs, target = self._batch(bench)
        with _rebuilding(student, self.drop):
            error = reconstruction_error(student(inputs), target)
            regularization = self._regularization(student, iteration)
            loss = error if regularization is None else error + regularization
            bench.require_finite(loss, self.name)
            if (
                stepper.optimizers
            ):  # a unit that is left in floating point may have nothing to learn
                stepper.zero_grad()
                stepper.backward(loss)
        if stepper.optimizers:
            average_gradients(student.parameters())
            stepper.step()
        scalars: dict[str, Tensor | float] = {
            f"{self.name}/error": error.detach(),
            f"{self.name}/unit": float(number),
        }
        if iteration + 1 == self.iterations:
            self._leave(bench, unit)
            scalars |= self._measured
        return Outcome(scalars)

    # -- One unit after the other ---------------------------------------------------------

    def _enter(self, bench: Bench, number: int) -> None:
        """Cache what a unit is rebuilt from, and let its parameters alone train.

        After a resume, all units before it are gone through again.
        """
        teacher, student = bench.teacher.graph_module, bench.student
        student.requires_grad_(False)
        if self._cache is not None and self._at == number - 1:
            floating = self._cache.target
            quantized = self._through(bench, self._student_unit, self._cache.quantized)
        else:
            floating = quantized = self._inputs(bench)
            for unit in self._units[:number]:
                floating = self._through(bench, extract(teacher, unit), floating)
                quantized = self._through(bench, extract(student, unit), quantized)
        unit = self._units[number]
        target = self._through(bench, extract(teacher, unit), floating)
        self._cache, self._at = _Cache(floating, quantized, target), number
        # Not registered: the layers are the student's.
        vars(self)["_student_unit"] = extract(student, unit)
        for group in self._groups(self._student_unit).values():
            for parameter in group:
                parameter.requires_grad_(True)
        with torch.no_grad():
            self._before = self._error(bench)

    def _leave(self, bench: Bench, unit: Unit) -> None:
        """Round hard, and say what was gained."""
        for _, layer in quantized_layers(self._student_unit):
            if isinstance(layer.weight_quantizer, AdaptiveWeightQuantizer):
                layer.weight_quantizer.settled(layer.weight)
        bench.student.requires_grad_(True)
        bench.release(f"{self.key}.unit")
        with torch.no_grad():
            after = self._error(bench)
        self._measured = {
            f"{self.name}/error_before/{unit.name}": self._before,
            f"{self.name}/error_after/{unit.name}": after,
        }

    def end(self, bench: Bench) -> None:
        """Let go of the cache."""
        self._cache, self._at = None, -1

    def _inputs(self, bench: Bench) -> Tensor:
        """Return the samples, each in as many views as are wanted, on the CPU."""
        batch = bench.sources[self.source].collect(self.samples)
        if self.views == 1 and not self._transforms:
            return batch.inputs.cpu()
        devices = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(self._seed)
            views = [
                transformed(some, self._transforms).inputs.cpu()
                for _ in range(self.views)
                for some in batch.split(CHUNK)
            ]
        return torch.cat(views)

    @torch.no_grad()
    def _through(self, bench: Bench, unit: fx.GraphModule, inputs: Tensor) -> Tensor:
        """Return what a unit puts out, on the CPU."""
        device = next(bench.student.parameters()).device
        parts = torch.split(inputs, CHUNK)
        return torch.cat([unit(bench.layout(part.to(device))).cpu() for part in parts])

    def _batch(self, bench: Bench) -> tuple[Tensor, Tensor]:
        """Draw inputs, mixed of both networks', and their targets."""
        assert self._cache is not None
        device = next(bench.student.parameters()).device
        count = len(self._cache.target)
        index = torch.randint(count, (min(self.batch_size, count),))
        floating, quantized, target = (each[index].to(device) for each in self._cache)
        # Tokens are the same for both networks.
        if self.mix < 1 and quantized.is_floating_point():
            quantized = torch.where(torch.rand_like(quantized) < self.mix, quantized, floating)
        return bench.layout(quantized), target

    def _error(self, bench: Bench) -> float:
        """Return the error of the unit, rounded hard, on some of the samples."""
        assert self._cache is not None
        device = next(bench.student.parameters()).device
        some = slice(0, CHUNK)
        output = self._student_unit(bench.layout(self._cache.quantized[some].to(device)))
        return float(reconstruction_error(output, self._cache.target[some].to(device)))

    # -- What trains ----------------------------------------------------------------------

    def _groups(self, unit: fx.GraphModule) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that train, by the name of their rate."""
        steps = step_parameters(unit)
        layers = [layer for _, layer in quantized_layers(unit)]
        adaptive = [
            layer.weight_quantizer
            for layer in layers
            if isinstance(layer.weight_quantizer, AdaptiveWeightQuantizer)
        ]
        scales = [q.relative_scale for q in adaptive]
        groups = {"steps": [*steps, *scales] if self.step_lr else []}
        if self.trains == "rounding":
            groups["weights"] = [q.v for q in adaptive]
        else:
            others = {id(each) for each in steps}
            groups["weights"] = [p for p in unit.parameters() if id(p) not in others]
        return {name: parameters for name, parameters in groups.items() if parameters}

    def _optimizers(self, unit: fx.GraphModule) -> dict[str, optim.Optimizer]:
        return {name: optim.Adam(group) for name, group in self._groups(unit).items()}

    def _rate(self, name: str, iteration: int) -> float:
        falling = 0.5 * (1 + math.cos(math.pi * iteration / self.iterations))
        if name == "steps":
            return self.step_lr * falling
        return self.lr if self.trains == "rounding" else self.lr * falling

    def _regularization(self, unit: fx.GraphModule, iteration: int) -> Tensor | None:
        """Return what drives roundings to an integer; none before it begins."""
        warm = WARM_SHARE * self.iterations
        if self.trains != "rounding" or iteration < warm:
            return None
        done = (iteration - warm) / (self.iterations - warm)
        b = FIRST_B + (LAST_B - FIRST_B) * done
        found = [
            rounding_loss(layer.weight_quantizer.v, b)
            for _, layer in quantized_layers(unit)
            if isinstance(layer.weight_quantizer, AdaptiveWeightQuantizer)
        ]
        return self.regularization * torch.stack(found).sum() if found else None

    def memory_key(self, bench: Bench) -> tuple[str, int]:
        """Return the batch size."""
        return f"{self.key}.batch_size", self.batch_size

    def get_extra_state(self) -> dict[str, int]:
        """Return the seed of the views, for ``state_dict``."""
        return {"seed": getattr(self, "_seed", 0)}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self._seed = int(state["seed"])


def reconstruction_error(output: Tensor, target: Tensor) -> Tensor:
    """Return ``mean over N, H, W of the sum over C of (output - target)^2``, a scalar, float32.

    Source: BRECQ's released code; GENIE (Jeon et al., CVPR 2023).

    Args:
        output: (N, C, ...).
        target: Of the same shape.
    """
    return (output.float() - target.float()).square().sum(dim=1).mean()


class _rebuilding:  # noqa: N801  # used as a function
    """Have a unit's roundings soft and some of its activations unquantized inside of a block."""

    def __init__(self, unit: fx.GraphModule, drop: float) -> None:
        self._activations: list[ActivationQuantizer] = activation_quantizers(unit)
        self._roundings = [m for m in unit.modules() if isinstance(m, AdaptiveWeightQuantizer)]
        self._drop = drop

    def __enter__(self) -> None:
        self._set(self._drop, True)

    def __exit__(self, *_: object) -> None:
        self._set(0.0, False)

    def _set(self, drop: float, soft: bool) -> None:
        for activation in self._activations:
            activation.drop = drop
        for rounding in self._roundings:
            rounding.soft = soft
