"""SADAG (Dung et al., ICML 2024): GENIE's images, refined so that a student's minima are flat.

What gradients of the student's weights would say is read off its last layer, whose gradient on one
image is an outer product ``f x e`` of the features and the error of the logits. Formulas and rates
are those that are known of the paper and its released script; the docstrings say what is ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Adam, Optimizer

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.checks import MAX_RATE, require_range
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.core.stage import Bench, Outcome
from hast_lightning.errors import ConfigurationError
from hast_lightning.graph.classifier import classifier_input, feature_vectors
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    quantized_layers,
    set_activation_mode,
)
from hast_lightning.sources.image_bank import FRESH_PLATEAU
from hast_lightning.sources.latent_bank import LatentBank
from hast_lightning.stages.loss import see, weighted_loss
from hast_lightning.stages.reading import require_calibrated
from hast_lightning.stages.synthesize import Synthesize, still


class StandIn(NamedTuple):
    """What stands in for the gradient of the student's loss on each image.

    Attributes:
        features: What its last layer takes in, (N, C), float32.
        errors: The teacher's logits less the student's, (N, classes), float32.
    """

    features: Tensor
    errors: Tensor


def likeness(one: StandIn, other: StandIn) -> Tensor:
    """Return ``cos(f_i, f_j) cos(e_i, e_j)``: the cosine of both gradients, (N, M).

    Args:
        one: Of N images.
        other: Of M images.
    """
    parts = (
        (F.normalize(a, dim=1), F.normalize(b, dim=1)) for a, b in zip(one, other, strict=True)
    )
    with torch.autocast(one[0].device.type, enabled=False):
        of_features, of_errors = (a.float() @ b.float().T for a, b in parts)
    return of_features * of_errors


def flatness(one: StandIn, neighbor: StandIn) -> Tensor:
    """Return ``G``: the mean likeness of images and their neighbors, a scalar, at most 1."""
    return likeness(one, neighbor).diagonal().mean()


def crowding(one: StandIn, earlier: StandIn) -> Tensor:
    """Return ``D``: mean over images of the largest ``|likeness|`` to any other image, a scalar.

    Args:
        one: Of N images, at least 2 unless there are earlier ones.
        earlier: Of M images of batches before, without a graph; M may be 0.
    """
    among = likeness(one, one).abs()
    # Each image is like itself.
    among = among.masked_fill(torch.eye(len(among), dtype=torch.bool, device=among.device), 0)
    return torch.cat([among, likeness(one, earlier).abs()], dim=1).amax(dim=1).mean()


def neighbors(latents: Tensor, one: StandIn, radius: float) -> Tensor:
    """Return ``z - radius * g / |g|`` with the gradient ``g`` of ``<f, f'> <e, e'>`` by ``z``.

    ``f'`` and ``e'`` are ``f`` and ``e`` as constants. Their length counts: the product of a vector
    of length 1 with itself is 1 wherever it points, so that normalized ones have no gradient.

    Args:
        latents: (N, length), which ``one`` was made of; the result has their graph and no other.
        one: With its graph, which is kept.
        radius: Distance of each latent to its neighbor.
    """
    products = [(each * each.detach()).sum(dim=1) for each in one]
    (gradient,) = torch.autograd.grad((products[0] * products[1]).sum(), latents, retain_graph=True)
    return latents - radius * F.normalize(gradient, dim=1)


@part("source", "kept_latent_bank")
class KeptLatentBank(LatentBank):
    """A latent bank that keeps the latents and the generator of every batch (SADAG).

    They take as much memory as a generator for each batch does: 0.4 GB at 224 pixels.

    Source: Dung et al., ICML 2024.
    """

    file_kind = "kept-latent-bank"

    kept_latents: ClassVar[Tensor]
    kept_weights: ClassVar[Tensor]

    def unused(self) -> Collection[str]:
        """Return what neither the bank nor ``refine`` reads, which has plateaus in any case."""
        of_refine = () if self.factor == 1 else ("patience", "factor")
        return [name for name in super().unused() if name not in of_refine]

    def build(self, site: Site) -> None:
        """Make room for what is kept.

        Raises:
            ConfigurationError: as :meth:`ImageBank.build`.
            DataError: likewise.
        """
        super().build(site)
        batches = self.count // (self.batch_size * self.processes)
        latents = torch.zeros(batches, self.batch_size, self.latent_dim)
        self.register_buffer("kept_latents", latents)
        weights = torch.zeros(batches, sum(p.numel() for p in self.generator.parameters()))
        self.register_buffer("kept_weights", weights)

    def own_state(self) -> dict[str, Any]:
        """Return what is kept, too."""
        kept = {name: getattr(self, name).cpu() for name in ("kept_latents", "kept_weights")}
        return {**super().own_state(), **kept}

    @torch.no_grad()
    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        super().set_own_state(state)
        for name in ("kept_latents", "kept_weights"):
            getattr(self, name).copy_(state[name])

    @torch.no_grad()
    def _store_active_batch(self) -> Batch:
        number = self.position // (self.batch_size * self.processes)
        self.kept_latents[number] = self.latents
        self.kept_weights[number] = parameters_to_vector(self.generator.parameters())
        return super()._store_active_batch()

    @torch.no_grad()
    def reopen(self, number: int) -> None:
        """Have the latents and the generator of a batch again, and a plateau from its beginning."""
        self.latents.copy_(self.kept_latents[number])
        vector_to_parameters(self.kept_weights[number], self.generator.parameters())
        self._plateau = dict(FRESH_PLATEAU)

    def step_plateau(self, loss: float, optimizer: Optimizer, min_lr: float) -> None:
        """Reduce the rate of the latents where the loss does not fall any more."""
        self._on_plateau(loss, optimizer, min_lr)

    @torch.no_grad()
    def put_back(self) -> Batch:
        """Store the images of the latents as they are now, in the place of the oldest batch.

        Raises:
            FloatingPointError: they are NaN or infinite.
        """
        self.propose()
        return self._store_active_batch()


@part("stage", "refine")
class Refine(Synthesize):
    """Refines the images of a bank for a student that was rebuilt on them, which then starts anew.

    For each batch ``loss = terms + flatness (1 - G) + diversity D``: the student's gradient is to
    be the same on an image and on its neighbor in the space of latents (:func:`flatness`), and
    different on different images (:func:`crowding`). When all batches are refined the student is
    as it was converted, so that a stage has to calibrate it again.

    Source: Dung et al., ICML 2024. Ours: features are the student's; a neighbor is at the same
    distance from each image, in the direction of :func:`neighbors`; convolutions do not swing.
    """

    float_student = False

    iterations: int = 500
    """Steps for each batch."""
    lr: float = 1.0e-5
    """Learning rate of Adam for the latents, reduced on plateaus as the source's is."""
    min_lr: float = 1.0e-6
    """That rate does not fall below this."""
    generator_lr: float = 1.0e-4
    """Learning rate of Adam for the generator."""
    radius: float = 1.0
    """Distance of a latent to its neighbor."""
    flatness: float = 1.0
    """Weight of ``1 - G``; 0 leaves it and the passes of the neighbors out."""
    diversity: float = 1.0
    """Weight of ``D``; 0 leaves it out."""

    several_outputs = False
    features: ClassVar[Tensor]
    errors: ClassVar[Tensor]
    _converted: ClassVar[Mapping[str, Any]]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("iterations", self.iterations, 1)
        for name in ("lr", "generator_lr"):
            require_range(name, getattr(self, name), 0, MAX_RATE, open_minimum=True)
        require_range("min_lr", self.min_lr, 0, MAX_RATE)
        require_range("radius", self.radius, 0)
        require_range("flatness", self.flatness, 0)
        require_range("diversity", self.diversity, 0)

    def unused(self) -> Collection[str]:
        """Return the number of steps, which follows from the source."""
        return ("steps",)

    def bind(self, bench: Bench) -> None:
        """Check the source and the student, and remember the student as it was converted.

        Raises:
            UserError: as :meth:`Synthesize.bind`; the source keeps no latents, or was read from a
                file, which holds none; no stage before calibrates the student.
        """
        super().bind(bench)
        source = self._source[0]
        if not isinstance(source, KeptLatentBank) or source.filled_by_loading:
            raise ConfigurationError(
                f"{self.key}.source={self.source}: {self.kind} needs the latents that a "
                "kept_latent_bank has of images of its own run"
            )
        require_calibrated(bench, self.name, "looks at")
        self._node, width = classifier_input(bench.learner)
        student = tuple(dict.fromkeys([*(self._needs.student or ()), self._node]))
        self._needs = self._needs._replace(student=student)
        images = (len(source.kept_latents), source.batch_size)
        classes = bench.teacher.pretrained.num_classes
        # Of batches that are refined already; what comes behind them is not read.
        self.register_buffer("features", torch.zeros(*images, width))
        self.register_buffer("errors", torch.zeros(*images, classes))
        # Not registered: no checkpoint needs it, since it is made again.
        state = bench.student.state_dict().items()
        vars(self)["_converted"] = {name: value.detach().clone() for name, value in state}
        bench.ranges_frozen = False

    @property
    def _bank(self) -> KeptLatentBank:
        source = self._source[0]
        assert isinstance(source, KeptLatentBank)
        return source

    def length(self, bench: Bench) -> int:
        """Return the iterations of all batches together."""
        return len(self._bank.kept_latents) * self.iterations

    def step(self, bench: Bench, index: int) -> Outcome:
        """Refine the batch whose turn it is."""
        number, iteration = divmod(index, self.iterations)
        if iteration == 0:
            self._bank.reopen(number)
        outcome = self._refine(bench, Progress(self.name, index + 1, self.length(bench)), number)
        if iteration + 1 == self.iterations:
            finished = self._bank.put_back()
            for term in self._terms.values():
                term.finished(finished)
            bench.release(f"{self.key}.latents")
        return outcome

    def _optimizers(self) -> Mapping[str, Optimizer]:
        bank = self._bank
        return {
            "latents": Adam([bank.latents], lr=self.lr),
            "generator": Adam(bank.generator.parameters(), lr=self.generator_lr),
        }

    def _refine(self, bench: Bench, progress: Progress, number: int) -> Outcome:
        bank, stepper = self._bank, bench.stepper(f"{self.key}.latents", self._optimizers)
        batch = bank.propose()
        with still(bench.student, self._needs):
            seen = self._look(bench, batch.inputs, progress)
            loss = weighted_loss(self._terms, seen)
            own = self._stand_in(seen)
            extra = self._extra(bench, own, progress, number)
            total = loss.total + sum(extra.values())
            value = bench.require_finite(total, self.name)
            stepper.zero_grad()
            stepper.backward(total)
        stepper.step()
        bank.step_plateau(value, stepper.optimizers["latents"], self.min_lr)
        self.features[number], self.errors[number] = (each.detach() for each in own)
        scalars: dict[str, Tensor | float] = {
            f"{self.name}/{name}": each.detach() for name, each in {**loss.values, **extra}.items()
        }
        parts = {f"{self.name}/{term}": each for term, each in loss.parts.items()}
        return Outcome({**scalars, **stepper.scalars(self.name)}, parts, batch=batch.detach())

    def _look(self, bench: Bench, images: Tensor, progress: Progress) -> Seen:
        return see(Batch(bench.layout(images)), self._needs, bench.teacher, bench.learner, progress)

    def _stand_in(self, seen: Seen) -> StandIn:
        assert seen.student is not None
        errors = seen.teacher.logits.float() - seen.student.logits.float()
        return StandIn(feature_vectors(seen.student.values[self._node]), errors)

    def _extra(
        self, bench: Bench, own: StandIn, progress: Progress, number: int
    ) -> dict[str, Tensor]:
        """Return the two weighted losses beside the terms, by name."""
        found = {}
        if self.flatness:
            latents = neighbors(self._bank.latents, own, self.radius)
            seen = self._look(bench, self._bank.generator(latents), progress)
            found["flatness"] = self.flatness * (1 - flatness(own, self._stand_in(seen)))
        if self.diversity:
            kept = (self.features[:number].flatten(0, 1), self.errors[:number].flatten(0, 1))
            found["diversity"] = self.diversity * crowding(own, StandIn(*kept))
        return found

    def end(self, bench: Bench) -> None:
        """Have the student start anew: it was rebuilt on the images before."""
        bits = {n: layer.weight_quantizer.bits for n, layer in quantized_layers(bench.student)}
        # Biases that a later stage corrects were given behind this one, and are zero.
        given = {
            name: torch.zeros_like(value)
            for name, value in bench.student.state_dict().items()
            if name not in self._converted and name.endswith(".bias")
        }
        bench.student.load_state_dict({**self._converted, **given})
        for name, layer in quantized_layers(bench.student):
            if layer.weight_quantizer.bits != bits[name]:  # a search chose them
                layer.weight_quantizer.change_bits(bits[name], layer.weight)
        set_activation_mode(bench.student, ActivationMode.FLOAT)
        bench.ranges_frozen = False
