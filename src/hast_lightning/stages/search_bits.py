"""The stage that gives each layer bits of its own under a budget, without data.

Sensitivities of single layers go into an exact knapsack, or ZeroQ's search (Cai et al., CVPR 2020)
measures whole policies on its way. What is rounded is the student; its activations stay float.
"""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple

import torch
import yaml  # type: ignore[import-untyped]  # comes with OmegaConf
from torch import Tensor, fx

from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.core.network import example_inputs
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Outcome, Plot
from hast_lightning.errors import ConfigurationError
from hast_lightning.graph.operations import is_depthwise
from hast_lightning.quantization.allocation import (
    Options,
    Policy,
    allocate,
    best_by_size,
    cost_of,
    extended,
    frontier,
    predicted,
)
from hast_lightning.quantization.fake_quant import (
    QuantizedLayer,
    quantized_layers,
    recalibrate,
)
from hast_lightning.quantization.probe import Probe
from hast_lightning.quantization.sensitivity import (
    Measure,
    divergence,
    fisher_diagonal,
    fisher_sensitivity,
    margin_lost,
    squared_error,
)
from hast_lightning.quantization.settings import BINARY, MAX_BITS, MIN_BITS
from hast_lightning.quantization.size import float_bytes, quantized_bytes
from hast_lightning.quantization.structure import list_calls
from hast_lightning.runtime.ranks import averaged
from hast_lightning.stages.reading import ReadingStage, require_source

MEASURES: Mapping[str, Measure] = {
    "kl": divergence,
    # It estimates the divergence of single layers; whole policies are measured by it.
    "fisher": divergence,
    "squared_error": squared_error,
    "margin": margin_lost,
}
SEARCHES = ("knapsack", "pareto")
BUDGETS = {"bytes": "bytes", "mean_bits": "mean bits", "bit_operations": "bit-operations"}
CHUNK = 32
"""Samples that go through the network at once."""
POINTS = 20
"""Budgets that the knapsack is solved for, to draw its frontier."""
SIGN_SEED = 20200614
"""Any fixed number: the signs of the Fisher matrix must not depend on what ran before."""


class _Costs(NamedTuple):
    """A budget in whole units.

    Attributes:
        layers: What each layer costs at each width.
        fixed: What all else costs.
        limit: What may be spent on ``layers``.
        per_unit: Units of cost that are 1 of the budget's own.
    """

    layers: tuple[dict[int, int], ...]
    fixed: int
    limit: int
    per_unit: float


@part("stage", "search_bits")
class SearchBits(ReadingStage):
    """Chooses the bits of each layer's weights within a budget, and goes on with them.

    Layers whose bits ``quantizer.overrides`` or ``first_and_last_8bit`` set keep them. Source:
    ZeroQ (Cai et al., CVPR 2020); HAWQ-V2 (Dong et al., NeurIPS 2020) for the second-order
    estimate; the idea of SEAM (Tang et al., ACM MM 2023) for the margin.
    """

    samples: int = 128
    """Samples that sensitivities are measured on."""
    measure: str = "kl"
    """What a rounded layer does to the output: ``kl`` (divergence from the float network),
    ``fisher`` (its second-order estimate), ``squared_error`` of logits, or ``margin`` lost between
    classes."""
    search: str = "knapsack"
    """``knapsack``: the least sum of sensitivities, exactly; ``pareto``: ZeroQ's search, which
    measures policies as they grow."""
    widths: list[int] = field(default_factory=lambda: [2, 3, 4, 5, 6, 8])
    """Bits that a layer may get."""
    least_depthwise: int = 4
    """Fewest bits of a depthwise convolution, 3 at least."""
    budget: str = "bytes"
    """What is limited: ``bytes`` of the whole network, ``mean_bits`` of a weight, or
    ``bit_operations`` for one image."""
    limit: float | None = None
    """How much there may be; null: as much as the bits of ``quantizer`` take for every layer."""
    bins: int = 50
    """Sizes that ``pareto`` tells apart; 200 in what is known of ZeroQ, which takes four times as
    long."""
    every: int = 5
    """Layers after which ``pareto`` measures again."""
    survivors: int = 10
    """Policies of one size that ``pareto`` keeps between two layers."""
    kept: int = 5
    """Policies of one size that it keeps once they were measured."""

    batch_key = "samples"
    changes_bits = True

    def __post_init__(self) -> None:
        for name in ("samples", "bins", "every", "survivors", "kept"):
            require_range(name, getattr(self, name), 1)
        if self.limit is not None:
            require_range("limit", self.limit, 0, open_minimum=True)
        require_choice("measure", self.measure, MEASURES)
        require_choice("search", self.search, SEARCHES)
        require_choice("budget", self.budget, BUDGETS)
        require_range("least_depthwise", self.least_depthwise, MIN_BITS + 1, MAX_BITS)
        if not self.widths:
            raise ConfigurationError("widths=[] leaves no layer any bits")
        for bits in self.widths:
            require_range("widths", bits, MIN_BITS, MAX_BITS)
        if max(self.widths) < self.least_depthwise:
            raise ConfigurationError(
                f"widths={self.widths}: none is as wide as least_depthwise={self.least_depthwise}"
            )
        self._losses: list[list[float]] = []
        self._survivors: list[Policy] = []
        self._points: list[tuple[Policy, float]] = []
        self._uniform: list[tuple[Policy, float]] = []
        self._best = Policy((), 0, 0.0)
        self._policy: dict[str, int] = {}
        self._probe: Probe | None = None
        self._fisher: list[Tensor] = []

    def bind(self, bench: Bench) -> None:
        """Check the source and the budget, and find the layers whose bits are searched.

        Raises:
            ConfigurationError: there is no such source, no such layer, or too small a budget.
        """
        require_source(bench, self.source, self.key)
        layers = dict(quantized_layers(bench.student))
        if not layers:
            raise ConfigurationError(
                f"order: {self.name} chooses bits of weights, which quantizer.weight_bits="
                f"{FLOAT_BITS} leaves in floating point"
            )
        self._before = {name: layer.weight_quantizer.bits for name, layer in layers.items()}
        self._names = [name for name, layer in layers.items() if not layer.bits_are_set]
        if not self._names:
            raise ConfigurationError(
                f"order: {self.name} chooses bits of weights, which quantizer.overrides sets for "
                "every layer"
            )
        if any(self._before[name] == BINARY for name in self._names):
            raise ConfigurationError(
                f"order: {self.name} chooses among two bits and more; quantizer.weight_bits=1 has "
                "nothing to choose"
            )
        self._widths = [
            tuple(sorted(b for b in set(self.widths) if b >= self._least(layers[name])))
            for name in self._names
        ]
        self._costs = self._count(bench, layers)

    def _least(self, layer: QuantizedLayer) -> int:
        depthwise = is_depthwise(layer)
        return self.least_depthwise if depthwise else MIN_BITS

    def _count(self, bench: Bench, layers: Mapping[str, QuantizedLayer]) -> _Costs:
        """Return what the widths of each layer cost, and refuse a budget below the least of it."""
        weights = {name: layer.weight.numel() for name, layer in layers.items()}
        per_unit = 1.0
        if self.budget == "bytes":
            costs = {n: {b: math.ceil(w * b / 8) for b in _ALL} for n, w in weights.items()}
            whole = quantized_bytes(bench.student, float_bytes(bench.learner.pretrained.network))
        else:
            units = weights if self.budget == "mean_bits" else _operations_per_bit(bench)
            costs = {n: {b: units[n] * b for b in _ALL} for n in weights}
            whole = sum(costs[n][bits] for n, bits in self._before.items())
            per_unit = sum(weights.values()) if self.budget == "mean_bits" else 1.0
        fixed = whole - sum(costs[name][self._before[name]] for name in self._names)
        limit = whole if self.limit is None else math.floor(self.limit * per_unit)
        searched = tuple(costs[name] for name in self._names)
        least = fixed + sum(c[w[0]] for c, w in zip(searched, self._widths, strict=True))
        if limit < least:
            wanted = limit / per_unit if self.limit is None else self.limit
            widths = sorted({w[0] for w in self._widths})
            raise ConfigurationError(
                f"{self.key}.limit={wanted:.10g}: with the fewest bits that layers may get "
                f"({' and '.join(map(str, widths))}) the student takes {least / per_unit:.10g} "
                f"{BUDGETS[self.budget]}"
            )
        return _Costs(searched, fixed, limit - fixed, per_unit)

    def found(self) -> str:
        """Return how many layers are searched, and within which budget."""
        limit = (self._costs.limit + self._costs.fixed) / self._costs.per_unit
        searched = f"bits of {len(self._names)} of {len(self._before)} layers"
        return f"{searched} within {limit:.10g} {BUDGETS[self.budget]}"

    def length(self, bench: Bench) -> int:
        """Return a step for each layer, those of the search, and one to choose."""
        return len(self._names) + self._groups + 1

    @property
    def _groups(self) -> int:
        return math.ceil(len(self._names) / self.every) if self.search == "pareto" else 0

    def step(self, bench: Bench, index: int) -> Outcome:
        """Measure one layer, let the search grow by some layers, or choose."""
        searched = index - len(self._names)
        with torch.no_grad():
            if searched < 0:
                return self._measure_layer(bench, index)
            if searched < self._groups:
                return self._grow(bench, searched)
            return self._choose(bench)

    # -- Measuring --------------------------------------------------------------------------------

    def _probed(self, bench: Bench) -> Probe:
        """Return the network that is looked at, made when it is first asked for."""
        if self._probe is None:
            self._probe = Probe(bench.student, self._batches(bench))
            if self.measure == "fisher":
                generator = torch.Generator().manual_seed(SIGN_SEED)
                weights = [self._probe.weight(name).requires_grad_() for name in self._names]
                found = fisher_diagonal(
                    self._probe.network, weights, self._probe.batches, generator
                )
                self._fisher = [averaged(each) for each in found]
        return self._probe

    def _batches(self, bench: Bench) -> list[Tensor]:
        inputs = bench.layout(bench.sources[self.source].collect(self.samples).inputs)
        return list(torch.split(inputs, CHUNK))

    def _loss(self, probe: Probe, bits: Mapping[str, int]) -> float:
        """Return what the network loses where these layers alone are rounded."""
        measure = MEASURES[self.measure]
        return float(averaged(measure(probe.float_logits, probe.logits(bits))))

    def _measure_layer(self, bench: Bench, index: int) -> Outcome:
        probe, name, widths = self._probed(bench), self._names[index], self._widths[index]
        if self.measure == "fisher":
            fisher, weight = self._fisher[index], probe.weight(name)
            losses = [
                float(fisher_sensitivity(fisher, weight, probe.rounded(name, b))) for b in widths
            ]
        else:
            losses = [self._loss(probe, {name: bits}) for bits in widths]
        self._losses = [*self._losses[:index], losses]
        return Outcome({f"{self.name}/sensitivity/{name}": losses[0]}, milestone=True)

    def _options(self) -> list[Options]:
        rows = zip(self._widths, self._costs.layers, self._losses, strict=True)
        return [Options(w, tuple(c[b] for b in w), tuple(losses)) for w, c, losses in rows]

    # -- Searching --------------------------------------------------------------------------------

    def _grow(self, bench: Bench, group: int) -> Outcome:
        """Let every survivor of the search grow by some layers, and measure what is left."""
        probe = self._probed(bench)
        layers, width = self._options(), max(self._costs.limit, 1) / self.bins
        survivors = self._survivors if group else [Policy((), 0, 0.0)]
        first = group * self.every
        for i in range(first, min(first + self.every, len(layers))):
            room = self._costs.limit - sum(min(each.costs) for each in layers[i + 1 :])
            survivors = best_by_size(extended(survivors, layers[i], room), width, self.survivors)
        measured = [each._replace(loss=self._measured(probe, each.bits)) for each in survivors]
        self._survivors = best_by_size(measured, width, self.kept)
        return Outcome({f"{self.name}/policies": float(len(measured))})

    def _measured(self, probe: Probe, bits: Sequence[int]) -> float:
        return self._loss(probe, dict(zip(self._names, bits, strict=False)))

    def _choose(self, bench: Bench) -> Outcome:
        """Take the best policy, and let the student have its bits."""
        probe = self._probed(bench)
        layers, limit = self._options(), self._costs.limit
        if self.search == "pareto":
            found = frontier(self._survivors)
            best = min(found, key=lambda each: each.loss)
        else:
            best = allocate(layers, limit)
            least = sum(min(each.costs) for each in layers)
            spread = sum(max(each.costs) for each in layers) - least
            budgets = [least + spread * i // POINTS for i in range(POINTS + 1)]
            found = frontier([best, *(allocate(layers, each) for each in budgets)])
        bits = dict.fromkeys(found) | {best: None}
        self._points = [(each, self._measured(probe, each.bits)) for each in bits]
        self._uniform = [
            (policy, self._measured(probe, policy.bits))
            for policy in self._uniform_policies(layers)
        ]
        self._policy = self._before | dict(zip(self._names, best.bits, strict=True))
        self._best = best
        self._hand_over(bench)
        loss = next(measured for policy, measured in self._points if policy == best)
        self._probe, self._fisher = None, []
        return Outcome(
            {
                f"{self.name}/loss": loss,
                f"{self.name}/{self.budget}": self._spent(best),
                **{f"{self.name}/bits/{name}": float(b) for name, b in self._policy.items()},
            }
        )

    def _uniform_policies(self, layers: Sequence[Options]) -> list[Policy]:
        """Return the policies of one width, depthwise convolutions included."""
        common = sorted(set.intersection(*(set(layer.bits) for layer in layers)))
        rows = [(bits,) * len(layers) for bits in common]
        return [Policy(r, cost_of(layers, r), predicted(layers, r)) for r in rows]

    def _hand_over(self, bench: Bench) -> None:
        """Change the student's bits, and find activation ranges again where there are some."""
        for name, layer in quantized_layers(bench.student):
            if layer.weight_quantizer.bits != self._policy[name]:
                layer.weight_quantizer.change_bits(self._policy[name], layer.weight)
        if bench.ranges_frozen:
            recalibrate(bench.student, self._batches(bench))

    def _spent(self, policy: Policy) -> float:
        return (policy.cost + self._costs.fixed) / self._costs.per_unit

    # -- What is left of it -----------------------------------------------------------------------

    def files(self) -> dict[str, str]:
        """Return the bits as YAML; the frontier, and what each layer does, as tables."""
        if not self._policy:
            return {}
        return {
            f"{self.name}_bits.yaml": self._yaml(),
            f"{self.name}_frontier.csv": self._table(),
            f"{self.name}_sensitivities.csv": self._sensitivities(),
        }

    def _yaml(self) -> str:
        overrides = [{"layers": n, "weight_bits": b} for n, b in self._policy.items()]
        words = ",".join(f"{{layers:{n},weight_bits:{b}}}" for n, b in self._policy.items())
        text: str = yaml.safe_dump({"quantizer": {"overrides": overrides}}, sort_keys=False)
        return (
            "# @package _global_\n"
            f"# Found by the stage {self.name}: {self._spent(self._best):.10g} "
            f"{BUDGETS[self.budget]}. On the command line:\n"
            f"# 'quantizer.overrides=[{words}]'\n{text}"
        )

    def _table(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["policy", self.budget, "predicted", "measured", *self._names])
        for kind, points in {"found": self._points, "uniform": self._uniform}.items():
            for policy, measured in points:
                name = "chosen" if policy == self._best and kind == "found" else kind
                loss = predicted(self._options(), policy.bits)
                row = [name, f"{self._spent(policy):.10g}", f"{loss:.6g}", f"{measured:.6g}"]
                writer.writerow([*row, *policy.bits])
        return text.getvalue()

    def _sensitivities(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["layer", "weight_bits", self.measure])
        for name, options in zip(self._names, self._options(), strict=True):
            for bits, loss in zip(options.bits, options.losses, strict=True):
                writer.writerow([name, bits, f"{loss:.6g}"])
        return text.getvalue()

    def plots(self) -> tuple[Plot, ...]:
        """Return the frontier: what is lost by what is spent."""
        if not self._policy:
            return ()
        curves = {
            kind: [(self._spent(p), m) for p, m in sorted(points, key=lambda each: each[0].cost)]
            for kind, points in (
                ("searched", self._points),
                ("one width for all", self._uniform),
                ("chosen", [each for each in self._points if each[0] == self._best]),
            )
            if points
        }
        title = f"Loss of rounded weights ({self.measure.replace('_', ' ')}) by size"
        return (Plot(title, BUDGETS[self.budget], curves),)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what was measured and chosen, in plain values, for ``state_dict``."""
        return {
            "losses": [list(each) for each in self._losses],
            "survivors": [_plain(each) for each in self._survivors],
            "points": [(_plain(each), measured) for each, measured in self._points],
            "uniform": [(_plain(each), m) for each, m in self._uniform],
            "best": _plain(self._best),
            "policy": dict(self._policy),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned; the student has its own bits."""
        self._losses = [list(each) for each in state["losses"]]
        self._survivors = [_policy(each) for each in state["survivors"]]
        self._points = [(_policy(each), measured) for each, measured in state["points"]]
        self._uniform = [(_policy(each), measured) for each, measured in state["uniform"]]
        self._policy = dict(state["policy"])
        self._best = _policy(state["best"])


_ALL = range(BINARY, MAX_BITS + 1)


def _operations_per_bit(bench: Bench) -> dict[str, int]:
    """Return the bit-operations for one image that a bit of each layer's weights takes."""
    student: fx.GraphModule = copy.deepcopy(bench.student)
    image = example_inputs(1, bench.learner.pretrained.input_shape)
    found: dict[str, int] = {}
    for call in list_calls(student, (), image.to(next(student.parameters()).device)):
        if call.weight_bits is not None:
            found[call.name] = found.get(call.name, 0) + call.multiplications * (
                call.input_bits or 0
            )
    return found


def _plain(policy: Policy) -> list[Any]:
    return [list(policy.bits), policy.cost, policy.loss]


def _policy(plain: Sequence[Any]) -> Policy:
    return Policy(tuple(plain[0]), int(plain[1]), float(plain[2]))
