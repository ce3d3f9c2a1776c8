"""The stage that rebuilds the student unit by unit: each is to put out what the teacher's does.

BRECQ (Li et al., ICLR 2021), QDrop (Wei et al., ICLR 2022), GENIE-M (Jeon et al., CVPR 2023) and
the fine-grained reconstruction of EDA-DM (Liu et al., arXiv 2401.04585) are settings of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field
from functools import partial
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, fx, nn, optim

from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.core.checks import MAX_RATE, require_choice, require_range
from hast_lightning.core.network import MODALITIES, example_inputs
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Outcome, Plot
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ConfigurationError, DataError, ModelError
from hast_lightning.graph.units import (
    Unit,
    exposed_layers,
    extract,
    find_units,
    parameters_of,
)
from hast_lightning.quantization.adaround import (
    AdaptiveWeightQuantizer,
    rounding_loss,
    undecided,
)
from hast_lightning.quantization.fake_quant import (
    ActivationQuantizer,
    QuantizedLayer,
    activation_quantizers,
    floating_activations,
    quantized_layers,
)
from hast_lightning.quantization.learned import step_parameters
from hast_lightning.runtime.ranks import average_gradients
from hast_lightning.stages.loss import bind_transforms, transformed
from hast_lightning.stages.reading import (
    ReadingStage,
    require_batch,
    require_calibrated,
    require_source,
    samples_there,
)
from hast_lightning.stages.room import Room, room_for
from hast_lightning.stages.unit_values import CHUNK, Cached, UnitValues, Values, largest_unit

_log = logging.getLogger(__name__)

TRAINS = ("weights", "rounding", "steps")
WARM_SHARE = 0.2
"""Share of the iterations before weights are driven to an integer (BRECQ, QDrop, GENIE)."""
FIRST_B, LAST_B = 20.0, 2.0
MOST_UNDECIDED = 0.01
"""How far learned roundings may end from 0 and 1 in the mean without a word."""


class _Drawn(NamedTuple):
    """A batch of a unit: inputs mixed of both networks', the teacher's own, and the target."""

    mixed: Values
    floating: Values
    target: Tensor


@part("stage", "reconstruct")
class Reconstruct(ReadingStage):
    """Rebuilds the student unit by unit, so that each puts out what the teacher's unit does.

    Targets are the teacher's outputs for its own inputs; the student's unit sees inputs that are
    mixed, element by element, of the teacher's and of what the rebuilt part of the student puts
    out. Only the parameters of one unit train at a time.

    Source: GENIE-M (Jeon et al., CVPR 2023), on QDrop and BRECQ; that weights themselves may
    train, with BatchNorm scales and shifts, is ours.
    """

    samples: int = 1024
    """Samples of the source, as many as there are at most."""
    views: int = 1
    """Times that each sample is used, each time changed by the transforms anew."""
    transforms: dict[str, Transform] = field(default_factory=dict)
    """What changes the samples, once before the first unit."""
    ends: list[str] | None = None
    """Names or patterns of the layers behind which a unit ends, as ``model.taps`` has them; null:
    behind every block, and every single layer outside of blocks."""
    iterations: int = 20000
    """Steps for each unit."""
    batch_size: int = 32
    """Samples of a step, on each device."""
    trains: str = "weights"
    """``weights``: weights, biases and BatchNorm scales and shifts; ``rounding``: whether each
    weight is rounded up or down, which needs ``rounding@quantizer.rounding=adaptive``; ``steps``:
    the step sizes of activations alone (the second pass of BRECQ)."""
    drop: float = 0.5
    """Share of the activations that pass unquantized while a unit is rebuilt (QDrop). 1: all do,
    in the unit and in those before it (the first pass of BRECQ)."""
    mix: float = 0.5
    """Share of a unit's inputs that are the student's; 1: all (BRECQ)."""
    lr: float = 1.0e-3
    """Learning rate of weights, falling to zero as a cosine, or of roundings, constant; Adam."""
    step_lr: float = 1.0e-3
    """Learning rate of learned step sizes and scales, relative to their size, as a cosine; 0:
    they stay."""
    regularization: float = 1.0
    """Weight of what drives each rounding to an integer (lambda); 0: nothing does, and the rounding
    is hard at the end all the same (EDA-DM)."""
    falling: bool = False
    """The rate of roundings falls to zero as a cosine, too (EDA-DM)."""
    learns_scales: bool = True
    """The scales of weights learn with their roundings (GENIE); false: they stay (BRECQ)."""
    exponent: float = 2.0
    """Exponent of the errors that are minimized; 2.4 in the second pass of BRECQ."""
    layer_weight: float = 0.0
    """Weight of the errors of the layers of a unit but the last, beside that of the unit (w of
    EDA-DM); 0: only what the unit puts out counts."""

    trains_student = True
    modalities = MODALITIES
    several_outputs = True

    _student_unit: ClassVar[fx.GraphModule]
    _layers: ClassVar[tuple[fx.GraphModule, fx.GraphModule] | None] = None

    def __post_init__(self) -> None:
        for name in ("samples", "views", "iterations", "batch_size"):
            require_range(name, getattr(self, name), 1)
        require_choice("trains", self.trains, TRAINS)
        require_range("drop", self.drop, 0, 1)
        require_range("mix", self.mix, 0, 1)
        require_range("lr", self.lr, 0, MAX_RATE, open_minimum=True)
        require_range("step_lr", self.step_lr, 0, MAX_RATE)
        require_range("regularization", self.regularization, 0)
        require_range("layer_weight", self.layer_weight, 0)
        require_range("exponent", self.exponent, 1, 10)
        if self.trains == "steps" and not self.step_lr:
            raise ConfigurationError("step_lr=0: trains=steps has nothing else to learn")
        if self.trains == "steps" and self.drop == 1:
            raise ConfigurationError(
                "drop=1: trains=steps learns from activations that are quantized, and then none "
                "is; lower it"
            )
        self._at = -1
        self._values: UnitValues | None = None
        self._cached: Cached | None = None
        self._errors_of: list[list[float]] = []

    def bind(self, bench: Bench) -> None:
        """Find the units, and check the source and the quantizer.

        Raises:
            UserError: there is no such source, no unit, or nothing that could be learned.
        """
        require_source(bench, self.source, self.key)
        require_calibrated(bench, self.name, "rebuilds")
        timed = bench.teacher.pretrained.denoises
        try:
            units = find_units(bench.teacher.graph_module, timed=timed, ends=self.ends)
        except ModelError as error:
            of_ends = f"{self.key}.ends={self.ends}: " if self.ends is not None else ""
            raise ModelError(f"{of_ends}{error}") from error
        self._units = tuple(units)
        self._kept_in = self._room(bench)
        layers = [layer for _, layer in quantized_layers(bench.student)]
        adaptive = any(isinstance(e.weight_quantizer, AdaptiveWeightQuantizer) for e in layers)
        if self.trains == "rounding" and not layers:
            raise ConfigurationError(
                f"{self.key}.trains=rounding, but all weights are left in floating point "
                f"(quantizer.weight_bits={FLOAT_BITS})"
            )
        if self.trains == "steps" and not _activation_steps(bench.student):
            raise ConfigurationError(
                f"{self.key}.trains=steps needs step sizes of activations that learn: choose "
                "quantizer=lsq or quantizer=power, and activation_bits below 32"
            )
        if self.trains != "steps" and adaptive != (self.trains == "rounding"):
            wanted = "adaptive" if self.trains == "rounding" else "nearest"
            raise ConfigurationError(
                f"{self.key}.trains={self.trains} needs rounding@quantizer.rounding={wanted}"
            )
        require_batch(bench, self.source, self.samples, self.batch_size, self.key, self.views)
        both = (bench.teacher, bench.learner)
        self._transforms = bind_transforms(self.transforms, *both, self.key)
        self._parts = nn.ModuleList(self._transforms.values())

    def _room(self, bench: Bench) -> Room:
        """Return where values are kept, or refuse more samples than there is room for."""
        example = example_inputs(1, bench.teacher.pretrained.input_shape)
        teacher = bench.teacher.graph_module
        unit, size = largest_unit(teacher, self._units, example.to(_device(bench)))
        count = self.views * samples_there(bench, self.source, self.samples) + CHUNK
        what = f"the values of {count} samples that are kept for {unit.name}"
        try:
            return room_for(count * size, what)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{self.key}.samples={self.samples}: {error}: lower it, or views"
            ) from None

    def length(self, bench: Bench) -> int:
        """Return the iterations of all units together."""
        return len(self._units) * self.iterations

    def found(self) -> str:
        """Return the names of the units."""
        return f"{len(self._units)} units: {', '.join(unit.name for unit in self._units)}"

    def begin(self, bench: Bench) -> None:
        """Draw the seed that views are made by, which a resumed run finds again."""
        self._seed = int(torch.randint(2**31, ()))

    def step(self, bench: Bench, index: int) -> Outcome:
        """Do one iteration for the unit whose turn it is."""
        number, iteration = divmod(index, self.iterations)
        unit = self._units[number]
        if self._at != number:
            self._enter(bench, number)
        assert self._cached is not None
        student = self._student_unit
        stepper = bench.stepper(f"{self.key}.unit", lambda: self._optimizers(student))
        for name, optimizer in stepper.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rate(name, iteration)
        batch = self._batch(bench)
        with _rebuilding(student, self.drop, soft=self.trains == "rounding"):
            error, of_layers = self._errors(batch)
            regularization = self._regularization(student, iteration)
            loss = error if of_layers is None else error + self.layer_weight * of_layers
            loss = loss if regularization is None else loss + regularization
            bench.require_finite(loss, self.name)
            # A unit that is left in floating point may have nothing to learn.
            if stepper.optimizers:
                stepper.zero_grad()
                stepper.backward(loss)
        if stepper.optimizers:
            average_gradients(student.parameters())
            stepper.step()
        scalars: dict[str, Tensor | float] = {
            f"{self.name}/error": error.detach(),
            f"{self.name}/unit": float(number),
        }
        if of_layers is not None:
            scalars[f"{self.name}/error_of_layers"] = of_layers.detach()
        is_last = iteration + 1 == self.iterations
        if is_last:
            scalars |= self._leave(bench, unit)
        return Outcome(scalars, milestone=is_last)

    # -- One unit after the other ---------------------------------------------------------

    def _enter(self, bench: Bench, number: int) -> None:
        """Cache what a unit is rebuilt from, and let its parameters alone train."""
        teacher, student = bench.teacher.graph_module, bench.student
        student.requires_grad_(False)
        if self._values is None:
            placed, inputs = partial(_placed, bench), partial(self._inputs, bench)
            self._values = UnitValues(self._units, teacher, student, placed, inputs, self._kept_in)
        self._cached = None  # makes room for the next
        with self._activations(student):
            self._cached, self._at = self._values.of(number), number
        unit = self._units[number]
        # Not registered: the layers are the student's.
        vars(self)["_student_unit"] = extract(student, unit)
        units = (extract(teacher, unit), self._student_unit)
        vars(self)["_layers"] = exposed_layers(*units) if self.layer_weight else None
        # Layers that are called several times train in the first unit that calls them.
        fixed = parameters_of(self._units[:number], teacher, student)
        trained = list(chain(*self._groups(self._student_unit).values()))
        for parameter in [each for each in trained if each not in fixed] or trained:
            parameter.requires_grad_(True)
        if len(self._errors_of) == number:
            # Else the run is resumed, and the unit has trained since.
            self._errors_of.append([self._error(bench)])

    def _leave(self, bench: Bench, unit: Unit) -> dict[str, float]:
        """Round hard, and return what was gained."""
        adaptive = _adaptive(self._student_unit) if self.trains == "rounding" else []
        for layer, quantizer in adaptive:
            quantizer.settled(layer.weight)
        bench.student.requires_grad_(True)
        bench.release(f"{self.key}.unit")
        self._errors_of[-1].append(self._error(bench))
        before, after = self._errors_of[-1]
        measured = {
            f"{self.name}/error_before/{unit.name}": before,
            f"{self.name}/error_after/{unit.name}": after,
        }
        if adaptive:
            roundings = torch.cat([quantizer.v.detach().flatten() for _, quantizer in adaptive])
            distance = float(undecided(roundings))
            measured[f"{self.name}/undecided/{unit.name}"] = distance
            if distance > MOST_UNDECIDED and self.regularization:
                _log.warning(
                    "%s: roundings of %s are undecided, in the mean %.2f from the side that they go"
                    " to: raise %s.iterations or lr",
                    *(self.name, unit.name, distance, self.key),
                )
        return measured

    def end(self, bench: Bench) -> None:
        """Let go of the cache."""
        self._values, self._cached, self._at = None, None, -1

    def _inputs(self, bench: Bench) -> Tensor:
        """Return the samples in as many views as are wanted, on the host, then those held out.

        Errors before and after are of the latter, where the source holds any out.
        """
        source = bench.sources[self.source]
        batch = source.collect(self.samples)
        try:
            others = source.held_out(CHUNK).inputs.cpu()
        except (ConfigurationError, DataError):
            others = batch.inputs[:0].cpu()
        self._held_out = len(others)
        devices = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(self._seed)
            views = (
                transformed(some, self._transforms).inputs.cpu()
                for _ in range(self.views)
                for some in batch.split(CHUNK)
            )
            count = self.views * len(batch.inputs) + len(others)
            return self._kept_in.gathered(count, chain(views, [others]))

    def _batch(self, bench: Bench) -> _Drawn:
        """Draw inputs, mixed of both networks', and their targets."""
        assert self._cached is not None
        device = _device(bench)
        count = len(self._cached.target) - self._held_out
        index = torch.randint(count, (min(self.batch_size, count),))
        floating, quantized = (
            tuple(each[index].to(device) for each in values)
            for values in (self._cached.floating, self._cached.quantized)
        )
        if self.mix < 1:
            # Tokens are the same for both networks.
            quantized = tuple(
                torch.where(torch.rand_like(q) < self.mix, q, f) if q.is_floating_point() else q
                for q, f in zip(quantized, floating, strict=True)
            )
        mixed = _placed(bench, quantized)
        return _Drawn(mixed, floating, self._cached.target[index].to(device))

    def _errors(self, batch: _Drawn) -> tuple[Tensor, Tensor | None]:
        """Return the error of the unit, and of its layers but the last where these count."""
        if self._layers is None:
            return self._distance(self._student_unit(*batch.mixed), batch.target), None
        of_teacher, of_student = self._layers
        with torch.no_grad():
            _, wanted = of_teacher(*batch.floating)
        output, found = of_student(*batch.mixed)
        pairs = zip(found, wanted, strict=True)
        errors = torch.stack([self._distance(*pair) for pair in pairs])
        return self._distance(output, batch.target), errors.sum()

    def _distance(self, output: Tensor, target: Tensor) -> Tensor:
        return reconstruction_error(output, target, self.exponent)

    def _activations(self, network: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which activations are quantized, or none where all are dropped."""
        return floating_activations(network) if self.drop == 1 else nullcontext()

    @torch.no_grad()
    def _error(self, bench: Bench) -> float:
        """Return the error of the unit, rounded hard, on samples that it is not rebuilt on."""
        assert self._cached is not None
        some = slice(-self._held_out, None) if self._held_out else slice(0, CHUNK)
        inputs = tuple(each[some] for each in self._cached.quantized)
        with self._activations(self._student_unit):
            output = self._student_unit(*_placed(bench, inputs))
        return float(reconstruction_error(output, self._cached.target[some].to(_device(bench))))

    # -- What trains ----------------------------------------------------------------------

    def _groups(self, unit: fx.GraphModule) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that train, by the name of their rate."""
        if self.trains == "steps":
            steps = _activation_steps(unit)
            return {"steps": steps} if steps else {}
        steps = step_parameters(unit)
        adaptive = [quantizer for _, quantizer in _adaptive(unit)]
        scales = [q.relative_scale for q in adaptive] if self.learns_scales else []
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
        stays = self.trains == "rounding" and not self.falling
        return self.lr if stays else self.lr * falling

    def _regularization(self, unit: fx.GraphModule, iteration: int) -> Tensor | None:
        """Return what drives roundings to an integer; none before it begins."""
        warm = WARM_SHARE * self.iterations
        if self.trains != "rounding" or not self.regularization or iteration < warm:
            return None
        done = (iteration - warm) / (self.iterations - warm)
        b = FIRST_B + (LAST_B - FIRST_B) * done
        found = [rounding_loss(quantizer.v, b) for _, quantizer in _adaptive(unit)]
        return self.regularization * torch.stack(found).sum() if found else None

    def plots(self) -> tuple[Plot, ...]:
        """Return the error of each unit, before and after."""
        done = [each for each in self._errors_of if len(each) == 2]
        if not done:
            return ()
        curves = {
            name: [(i + 1.0, errors[which]) for i, errors in enumerate(done)]
            for which, name in enumerate(("before", "after"))
        }
        return (Plot("Error of each unit, in the order of execution", "unit", curves),)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the seed of the views and the errors of units so far, for ``state_dict``."""
        return {"seed": getattr(self, "_seed", 0), "errors": [list(e) for e in self._errors_of]}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self._seed = int(state["seed"])
        self._errors_of = [list(each) for each in state.get("errors", [])]


def _adaptive(unit: nn.Module) -> list[tuple[QuantizedLayer, AdaptiveWeightQuantizer]]:
    """Return the layers of a unit whose roundings are learned, each with what learns them."""
    found = [(layer, layer.weight_quantizer) for _, layer in quantized_layers(unit)]
    return [(layer, q) for layer, q in found if isinstance(q, AdaptiveWeightQuantizer)]


def _activation_steps(network: nn.Module) -> list[nn.Parameter]:
    """Return the learned step sizes and offsets of activations."""
    return [p for each in activation_quantizers(network) for p in step_parameters(each)]


def _placed(bench: Bench, values: Values) -> Values:
    """Return values on the device, in the memory format of the run."""
    return tuple(bench.layout(each.to(_device(bench))) for each in values)


def _device(bench: Bench) -> torch.device:
    return next(bench.student.parameters()).device


def reconstruction_error(output: Tensor, target: Tensor, exponent: float = 2.0) -> Tensor:
    """Return ``mean over N, H, W of the sum over C of |output - target|^p``, a scalar, float32.

    Source: BRECQ's released code; GENIE (Jeon et al., CVPR 2023).

    Args:
        output: (N, C, ...).
        target: Of the same shape.
        exponent: p.
    """
    distance = output.float() - target.float()
    powers = distance.square() if exponent == 2 else distance.abs().pow(exponent)
    return powers.sum(dim=1).mean()


class _rebuilding:  # noqa: N801  # used as a function
    """Have a unit's roundings soft and some of its activations unquantized inside of a block."""

    def __init__(self, unit: fx.GraphModule, drop: float, *, soft: bool) -> None:
        self._activations: list[ActivationQuantizer] = activation_quantizers(unit)
        self._roundings = [quantizer for _, quantizer in _adaptive(unit)] if soft else []
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
