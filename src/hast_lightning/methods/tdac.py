"""Timesteps to calibrate on, chosen by density and variety of inner values (TDAC of EDA-DM).

Source: EDA-DM (Liu et al., arXiv 2401.04585), its first part, after the released code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hast_lightning.core.checks import require_range
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.graph.operations import LAYERS_WITH_PRODUCTS, layer_of
from hast_lightning.graph.tracing import expose, trace
from hast_lightning.sources.denoising import SamplingRuns

MIDDLE_SEED = 20240108
"""Any fixed number: of the runs whose inner values are compared."""


class Pairs(NamedTuple):
    """How far apart the inner values of two steps are, (S, S) each, float64.

    Attributes:
        distance: Mean over images, channels and positions of ``(F_i - F_j)^2``.
        unlikeness: Sum over images and positions of one minus the cosine over channels.
    """

    distance: Tensor
    unlikeness: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Pairs:
        """Compare features (S, N, C, ...) of S steps, those of the same run with each other."""
        steps, images, channels = features.shape[:3]
        maps = features.double().reshape(steps, images, channels, -1)
        flat = maps.flatten(1)
        # Not by norms and products: of like values their difference would be rounding.
        distance = torch.stack([(flat - each).square().mean(1) for each in flat])
        unit = (maps / maps.norm(dim=2, keepdim=True).clamp_min(1e-12)).flatten(1)
        places = images * maps.shape[3]
        likeness = (unit @ unit.T).clamp(max=places)
        unlike = torch.where(distance == 0, 0.0, places - likeness)
        return cls(distance, unlike)


def density(distance: Tensor, radius: float) -> Tensor:
    """Return how many other steps are no farther than ``radius`` from each, (S,): ``D``.

    Args:
        distance: (S, S).
        radius: In squared units of the inner values.
    """
    return (distance <= radius).sum(1).double() - 1


def variety(unlikeness: Tensor) -> Tensor:
    """Return how unlike each step is to all others, (S,): ``V``.

    Args:
        unlikeness: (S, S), zero on its diagonal.
    """
    return unlikeness.sum(1)


def quantile_radius(distance: Tensor, quantile: float) -> float:
    """Return the distance that this share of the pairs of steps (S, S) does not exceed."""
    above = torch.ones_like(distance, dtype=torch.bool).triu(1)
    return float(distance[above].quantile(quantile))


def step_weights(density: Tensor, variety: Tensor, balance: float) -> Tensor:
    """Return ``w = D + lambda V``, each from 0 to 1 over the steps, (S,).

    Where both say nothing, since all steps are alike, all weights are 1.
    """
    weights = _normalized(density) + balance * _normalized(variety)
    return weights if float(weights.sum()) > 0 else torch.ones_like(weights)


def _normalized(values: Tensor) -> Tensor:
    """Return values from 0 to 1; zeros where they do not differ."""
    low, high = values.aminmax()
    # Sums of like numbers differ by rounding.
    if float(high - low) <= 1e-9 * float(high.abs()):
        return torch.zeros_like(values)
    return (values - low) / (high - low)


def allocate(weights: Tensor, total: int) -> Tensor:
    """Return ``n_i = round(N w_i / sum w)``, (S,) int64, corrected to add up to ``total``.

    What is missing is added one each to the largest; what is too much is taken from the last steps.
    """
    counts = (total * weights / weights.sum()).round().long()
    missing = total - int(counts.sum())
    if missing > 0:
        counts[weights.argsort(descending=True, stable=True)[:missing]] += 1
    place = len(counts) - 1
    while missing < 0:
        taken = min(int(counts[place]), -missing)
        counts[place] -= taken
        missing += taken
        place -= 1
    return counts


@part("source", "tdac")
class DensityAndVariety(SamplingRuns):
    """Inputs ``(x_t, t)`` of sampling runs, more of steps that are typical or unlike others.

    Typical are steps whose inner values many others have within a radius; unlike are those whose
    values point elsewhere. Source: EDA-DM (Liu et al., arXiv 2401.04585); that the radius may be a
    quantile of the distances is ours, and needed for networks other than the paper's.
    """

    balance: float = 1.2
    """Weight of variety beside density (lambda)."""
    radius: float | None = None
    """Mean squared distance up to which a step counts as near (r), in units of the network's inner
    values: 3 or 0.3 for the paper's networks; none: ``radius_quantile`` decides."""
    radius_quantile: float = 0.2
    """Share of the pairs of steps that are near."""
    node: str | None = None
    """Name of the value that steps are compared by; none: what the layer in the middle takes in."""
    compared_runs: int = 16
    """Sampling runs whose inner values are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("balance", self.balance, 0)
        if self.radius is not None:
            require_range("radius", self.radius, 0)
        require_range("radius_quantile", self.radius_quantile, 0, 1)
        require_range("compared_runs", self.compared_runs, 1)

    def build(self, site: Site) -> None:
        """Make room for the points, and find the value that steps are compared by.

        Raises:
            ConfigurationError: the network does not fit, or has no value of that name.
        """
        super().build(site)
        graph = trace(site.pretrained.network)
        self._compared = self.node or middle_value(graph, site.pretrained.name)
        try:
            expose(graph, [self._compared])
        except ModelError as error:
            raise ConfigurationError(f"{site.key}.node={self.node}: {error}") from error

    def chosen_steps(self, network: PretrainedNetwork, device: torch.device) -> Tensor:
        """Return how many points each step gives, by density and variety."""
        pairs = Pairs.of(self._features(network, device))
        radius = self.radius
        if radius is None:
            radius = quantile_radius(pairs.distance, self.radius_quantile)
        found = density(pairs.distance, radius), variety(pairs.unlikeness)
        return allocate(step_weights(*found, self.balance), self.samples)

    @torch.no_grad()
    def _features(self, network: PretrainedNetwork, device: torch.device) -> Tensor:
        """Return the compared value at each step of the sampler, (S, N, C, ...), on the CPU."""
        exposed = expose(trace(network.network), [self._compared])
        generator = torch.Generator().manual_seed(MIDDLE_SEED)
        noise = self.sampler.start(self.compared_runs, network.input_shape, generator).to(device)
        found: list[Tensor] = []

        def denoise(inputs: Tensor) -> Tensor:
            output, (value,) = exposed(inputs)
            found.append(value.cpu())
            result: Tensor = output
            return result

        self.sampler.sample(denoise, noise, generator)
        return torch.stack(found)


def middle_value(graph_module: torch.fx.GraphModule, name: str) -> str:
    """Return the name of what the layer in the middle of those of maps takes in.

    The paper compares what the middle attention of a U-Net takes in; this stands for it elsewhere.

    Args:
        graph_module: Of the network.
        name: The network's, for the message.

    Raises:
        ConfigurationError: it has no convolution.
    """
    convolutions = [
        node
        for node in graph_module.graph.nodes
        if isinstance(layer := layer_of(node, graph_module), LAYERS_WITH_PRODUCTS)
        and not isinstance(layer, torch.nn.Linear)
    ]
    if not convolutions:
        raise ConfigurationError(f"the network {name} has no convolution: name a value with node")
    name_of_input: str = convolutions[len(convolutions) // 2].all_input_nodes[0].name
    return name_of_input
