"""The stage that rounds weights layer by layer, each for what the rounded layers before put out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Outcome
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.fake_quant import QuantizedLayer
from hast_lightning.quantization.gptq import (
    SOLVED,
    FixedGridQuantizer,
    input_rows,
    round_layer,
)
from hast_lightning.runtime.ranks import averaged
from hast_lightning.stages.reading import ReadingStage, require_calibrated, require_source


class _Place(NamedTuple):
    """A layer that is rounded, and the number of the node that calls it first."""

    number: int
    name: str


@part("stage", "gptq")
class GPTQ(ReadingStage):
    """Rounds the weights of one layer a step, in their order, by what the layer takes in (GPTQ).

    Inputs are those of the student, whose layers before are rounded already. A layer that is called
    several times is rounded for its first call. Samples go through the student once: what later
    layers need of them is kept on the CPU.

    Source: Frantar et al., ICLR 2023; convolutions with unfolded inputs are ours.
    """

    samples: int = 128
    """Samples of the source, as many as there are at most."""
    batch_size: int = 8
    """Samples that go through the student at once."""
    damping: float = 0.01
    """Share of the mean diagonal of H that is added to its diagonal."""
    block_size: int = 128
    """Columns that are rounded before the others are told; for speed alone."""

    trains_student = True
    several_outputs = True

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "block_size"):
            require_range(name, getattr(self, name), 1)
        require_range("damping", self.damping, 0, 100, open_minimum=True)
        self._at, self._values = 0, list[dict[fx.Node, Any]]()

    def bind(self, bench: Bench) -> None:
        """Find the layers, and check the source and the quantizer.

        Raises:
            ConfigurationError: there is no such source, or a layer cannot be rounded so.
        """
        require_source(bench, self.source, self.key)
        require_calibrated(bench, self.name, "rounds")
        self._places = _places(bench.student)
        for _, name in self._places:
            layer = bench.student.get_submodule(name)
            assert isinstance(layer, QuantizedLayer)
            if not isinstance(layer, SOLVED):
                kinds = " and ".join(kind.__name__ for kind in SOLVED)
                raise ConfigurationError(
                    f"order: {self.name} rounds {kinds}, and {name} is another layer: give it 32 "
                    "bits by quantizer.overrides, or choose stage reconstruct"
                )
            if not isinstance(layer.weight_quantizer, FixedGridQuantizer):
                raise ConfigurationError(
                    f"order: {self.name} needs rounding@quantizer.rounding=fixed_grid, on which "
                    "weights stay that were put there"
                )
        if not self._places:
            raise ConfigurationError(
                f"order: {self.name} rounds weights, and all are left in floating point"
            )

    def length(self, bench: Bench) -> int:
        """Return the number of layers."""
        return len(self._places)

    def step(self, bench: Bench, index: int) -> Outcome:
        """Round one layer."""
        if index == 0 or not self._values:
            self._begin(bench)
        number, name = self._places[index]
        layer = bench.student.get_submodule(name)
        assert isinstance(layer, QuantizedLayer)
        hessian = self._hessian(bench, number, layer)
        before = layer.weight_quantizer.rounded(layer.weight)
        former = layer.weight.detach().clone()
        round_layer(layer, hessian, self.damping, self.block_size)
        errors = [_error(former - each, hessian) for each in (before, layer.weight.detach())]
        kinds = zip(("error_nearest", "error"), errors, strict=True)
        scalars = {f"{self.name}/{kind}/{name}": error for kind, error in kinds}
        return Outcome(dict(scalars), milestone=True)

    def end(self, bench: Bench) -> None:
        """Let go of what was kept."""
        self._at, self._values = 0, []

    # -- Through the student, once --------------------------------------------------------

    def _begin(self, bench: Bench) -> None:
        """Start at the input; after a resume, all layers before are gone through again."""
        inputs = bench.sources[self.source].collect(self.samples).inputs.cpu()
        (entry,) = [node for node in bench.student.graph.nodes if node.op == "placeholder"]
        self._values = [{entry: part} for part in torch.split(inputs, self.batch_size)]
        self._at = 0

    @torch.no_grad()
    def _hessian(self, bench: Bench, number: int, layer: QuantizedLayer) -> Tensor:
        """Go on to a node, and return ``H`` (groups, d, d) of the layer that it calls."""
        total, count = None, 0
        device = layer.weight.device
        nodes = list(bench.student.graph.nodes)
        for place, values in enumerate(self._values):
            found = advance(bench, nodes, self._at, number, values)
            self._values[place] = found
            node = nodes[number]
            (entry,) = node.all_input_nodes
            rows = input_rows(layer, bench.layout(found[entry].to(device)))
            with torch.autocast(device.type, enabled=False):
                product = rows.transpose(1, 2) @ rows
            total = product if total is None else total + product
            count += rows.shape[1]
        self._at = number
        assert total is not None
        # The mean in place of the sum: rounding does not depend on its scale.
        return averaged(2 * total / count)


def _places(student: fx.GraphModule) -> list[_Place]:
    """Return the layers with rounded weights, in the order of their first calls."""
    found: dict[str, int] = {}
    for number, node in enumerate(student.graph.nodes):
        if node.op == "call_module":
            name = str(node.target)
            if isinstance(student.get_submodule(name), QuantizedLayer):
                found.setdefault(name, number)
    return [_Place(number, name) for name, number in found.items()]


def _error(difference: Tensor, hessians: Tensor) -> float:
    """Return the squared error of a layer's outputs, summed over channels, per row of inputs."""
    parts = torch.chunk(difference.flatten(1), len(hessians))
    with torch.autocast(difference.device.type, enabled=False):
        return sum(
            float(((part @ hessian) * part).sum()) / 2
            for part, hessian in zip(parts, hessians, strict=True)
        )


def advance(
    bench: Bench, nodes: list[fx.Node], first: int, last: int, values: dict[fx.Node, Any]
) -> dict[fx.Node, Any]:
    """Compute the nodes ``first`` to ``last - 1``, and return what later ones need, on the CPU.

    Args:
        bench: Its student is run.
        nodes: Of the student's graph.
        first: Number of the first node that is computed.
        last: Number of the first one that is not.
        values: Of the nodes before that are still needed.
    """
    device = next(bench.student.parameters()).device
    interpreter = _Interpreter(bench.student, {n: _moved(v, device) for n, v in values.items()})
    for node in nodes[first:last]:
        if node.op != "placeholder":
            interpreter.env[node] = interpreter.run_node(node)
    needed = {source for node in nodes[last:] for source in node.all_input_nodes}
    # Parameters are read again, since they may be rounded in between.
    return {
        node: _moved(value, torch.device("cpu"))
        for node, value in interpreter.env.items()
        if node in needed and node.op != "get_attr"
    }


class _Interpreter(fx.Interpreter):
    """Computes single nodes of a graph."""

    def __init__(self, student: fx.GraphModule, values: dict[fx.Node, Any]) -> None:
        super().__init__(student)
        self.env = values
        for node in student.graph.nodes:
            if node.op == "get_attr":
                self.env[node] = self.run_node(node)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(each, device) for each in value)
    return value
