"""SynQ (Kim et al., ICLR 2025): three additions to HAST for synthetic images.

A Gaussian low-pass filter of the images, a cross-entropy that leaves difficult samples out, and
an alignment of what both networks look at. Formulas and constants follow the authors' released
code; the docstrings say where this one departs from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.core.batch import Batch, Needs, Seen, weighted_mean
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ModelError, first_line
from hast_lightning.graph.operations import CONVOLUTIONS, calls, layer_of
from hast_lightning.graph.tracing import expose
from hast_lightning.terms.cross_entropy import difficulty

LEAST_WEIGHT = 1e-10
"""Weight of a channel whose gradient is negative, as in the released code."""
FLAT = 1e-6
"""A map whose values differ by less than this share of the largest says nothing."""


def low_pass(images: Tensor, cutoff: float) -> Tensor:
    """Multiply every channel's spectrum by ``exp(-f^2 / (2 cutoff^2))``.

    Source: SynQ (Kim et al., ICLR 2025), whose distance D from frequency zero, in bins, is
    ``f`` times the side of the image.

    Args:
        images: (N, C, H, W).
        cutoff: Standard deviation of the Gaussian, in cycles per pixel.

    Returns:
        (N, C, H, W), differentiable in ``images``; the mean of every channel is kept.
    """
    size = images.shape[-2:]
    # Half precision has no FFT of most sizes.
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    rows = torch.fft.fftfreq(size[0], device=wide.device, dtype=wide.dtype)
    columns = torch.fft.rfftfreq(size[1], device=wide.device, dtype=wide.dtype)
    gain = torch.exp((rows[:, None].square() + columns.square()) / (-2 * cutoff**2))
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(wide) * gain, s=size)
    return filtered.to(images.dtype)


@part("transform", "low_pass")
class LowPass(Transform):
    """Gaussian low-pass filter, which takes the noise of synthetic images away.

    Each channel's spectrum is multiplied by ``exp(-D^2 / (2 D0^2))``, ``D`` bins from frequency 0.

    Source: SynQ (Kim et al., ICLR 2025) with a radius of 80 bins, searched from 20 to 100, at 224
    pixels. That it grows in proportion to the sides of the image is ours: at 32 pixels 80 bins
    are next to no filter.
    """

    radius: float = 80.0
    """Standard deviation of the Gaussian in frequency bins (the paper's D0), of images of
    ``side`` x ``side`` pixels."""
    side: int = 224
    """Pixels that ``radius`` is meant for; images of other sides have it in proportion."""

    def __post_init__(self) -> None:
        require_range("radius", self.radius, 0, open_minimum=True)
        require_range("side", self.side, 1)

    def bind(self, teacher: Network, student: Network) -> None:
        """Look at what the network takes in.

        Raises:
            ModelError: no values (C, H, W).
        """
        if len(teacher.pretrained.input_shape) != 3:
            raise ModelError(
                f"the transform {self.kind} filters images (C, H, W), and the network "
                f"{teacher.pretrained.name} takes {teacher.pretrained.input_shape}: leave it out"
            )

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the batch with filtered images."""
        return batch._replace(inputs=low_pass(batch.inputs, self.radius / self.side))


@part("term", "masked_cross_entropy")
class MaskedCrossEntropy(Term):
    """The student's cross-entropy where the teacher is sure enough of the label, else zero.

    ``mean over the whole batch of [CE if 1 - p_y < threshold else 0]`` with the teacher's p_y.

    Source: SynQ (Kim et al., ICLR 2025). The released code adds a constant for every sample left
    out, which has no gradient, and masks promoted images as the images that they were made of;
    here the teacher's answer to the promoted image decides.
    """

    threshold: float = 0.5
    """Difficulty ``1 - p_y`` from which on a sample is left out (the paper's tau)."""

    title = "Cross-entropy of the student, without difficult samples"
    needs = Needs(student=(), labels="hard")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("threshold", self.threshold, 0, 1, open_minimum=True)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        labels = seen.batch.targets
        assert seen.student is not None
        assert labels is not None
        left_out = difficulty(seen.teacher.logits, labels) >= self.threshold
        each = F.cross_entropy(seen.student.logits.float(), labels, reduction="none")
        return weighted_mean(each.masked_fill(left_out, 0), seen.batch.weights)


class Tail(NamedTuple):
    """The part of a network that comes behind one of its values.

    Attributes:
        graph_module: The network.
        value: Name of the node.
        others: Names of the nodes that are read behind it as well, such as shortcuts.
        nodes: What is computed from the value, in order; the output last, unless the value is a
            dead end.
    """

    graph_module: fx.GraphModule
    value: str
    others: tuple[str, ...]
    nodes: tuple[fx.Node, ...]

    @classmethod
    def of(cls, graph_module: fx.GraphModule, value: str) -> Tail:
        """Return what comes behind a node."""
        behind = {node: None for node in graph_module.graph.nodes if node.name == value}
        others: dict[str, None] = {}
        for node in graph_module.graph.nodes:
            if any(source in behind for source in node.all_input_nodes):
                behind[node] = None
        nodes = list(behind)[1:]
        for node in nodes:
            others |= {source.name: None for source in node.all_input_nodes if source not in behind}
        return cls(graph_module, value, tuple(others), tuple(nodes))

    @property
    def ends(self) -> bool:
        """Return whether the value has no part in the output."""
        return not self.nodes or self.nodes[-1].op != "output"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the nodes whose values are needed to run it."""
        return (self.value, *self.others)

    def score_gradient(self, values: Mapping[str, Any]) -> Tensor:
        """Return the gradient of each sample's largest logit by the value (N, ...).

        It is computed apart from the pass that gave the values, so that it needs no graph of
        that pass, adds nothing to gradients of parameters, and is a constant for whatever is
        made of it: no backward pass is differentiated.
        """
        with torch.enable_grad():
            value = values[self.value].detach().requires_grad_()
            run = fx.Interpreter(self.graph_module, garbage_collect_values=False)
            for node in self.graph_module.graph.nodes:
                if node.name == self.value:
                    run.env[node] = value.clone()  # layers behind it may work in place
                elif node.name in self.others:
                    other = values[node.name]
                    run.env[node] = other.detach().clone() if torch.is_tensor(other) else other
            for node in self.nodes:
                run.env[node] = run.run_node(node)
            logits: Tensor = run.env[self.nodes[-1]]
            gradient: Tensor = torch.autograd.grad(logits.max(dim=1).values.sum(), value)[0]
        return gradient


def saliency_map(features: Tensor, gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """Return where a network looks: Grad-CAM, stretched to [0, 1] per image.

    ``relu(sum over channels of alpha_c * f_c)``, with ``alpha_c`` the spatial mean of the
    gradient, at least 1e-10; enlarged bilinearly, then ``(m - min) / (max - min)``.

    Source: SynQ (Kim et al., ICLR 2025) after Selvaraju et al., ICCV 2017. A map without
    differences is zero and has no gradient; the released code divides by 1e-10 there.

    Args:
        features: (N, C, h, w), which the gradient of the map flows to.
        gradient: Of each image's score by ``features``, taken as a constant.
        size: Height and width of the map.

    Returns:
        (N, H, W), float32.
    """
    with torch.autocast(features.device.type, enabled=False):
        alpha = gradient.detach().float().mean((2, 3)).clamp_min(LEAST_WEIGHT)
        shown = torch.einsum("nc,nchw->nhw", alpha, features.float()).relu()
        # Matrix products: the backward pass of interpolate adds in random order on CUDA.
        rows, columns = (
            _bilinear(now, then, features.device)
            for now, then in zip(shown.shape[1:], size, strict=True)
        )
        shown = rows @ shown @ columns.T
    low, high = shown.amin((1, 2), keepdim=True), shown.amax((1, 2), keepdim=True)
    flat = high - low <= FLAT * high
    return ((shown - low) / (high - low).masked_fill(flat, 1)).masked_fill(flat, 0)


def _bilinear(size: int, new_size: int, device: torch.device) -> Tensor:
    """Return (new_size, size): weights as of ``interpolate`` with ``align_corners=False``."""
    pixel = torch.arange(size, device=device, dtype=torch.float32)
    place = (torch.arange(new_size, device=device) + 0.5) * (size / new_size) - 0.5
    place = place.clamp(0, size - 1)
    return (1 - (place[:, None] - pixel).abs()).clamp_min(0)


@part("term", "grad_cam")
class GradCAM(Term):
    """Mean square difference between where student and teacher look, on images as they come.

    ``MSE(map_T, map_S)`` of the Grad-CAMs (:func:`saliency_map`) at the last convolution, of the
    class that each network finds likeliest itself. The student learns by its features; the
    weights of the channels are constants, so that fake quantizers need no second derivative.
    Images that promotion has made do not count.

    Source: SynQ (Kim et al., ICLR 2025). There the gradient that promotion follows leaves this
    term out; here it is that of the whole loss.
    """

    weight: float = 50.0
    """The paper's lambda_CAM."""
    layer: str | None = None
    """Name of the layer, or of the node of the graph, whose values the map is made of; null: the
    last convolution with more than one position."""

    title = "Grad-CAM alignment loss"

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the layer, and what of both networks comes behind it.

        Raises:
            ModelError: there is no such layer, its values are no maps, or no gradient of logits
                (N, classes) comes back to it.
        """
        name = self._find(teacher)
        # In tuples of plain pairs, so that the networks' layers are not registered here.
        self._tails = (Tail.of(teacher.graph_module, name), Tail.of(student.graph_module, name))
        self._require_gradient(teacher)
        of_teacher, of_student = (tail.inputs for tail in self._tails)
        return Needs(teacher=of_teacher, student=of_student, batch_norms=True)

    def _find(self, teacher: Network) -> str:
        """Return the name of the node."""
        graph_module = teacher.graph_module
        if self.layer is None:
            found = [
                node.name
                for node in graph_module.graph.nodes
                if isinstance(layer_of(node, graph_module), nn.Conv2d) or calls(node, CONVOLUTIONS)
            ]
        else:
            found = [
                node.name
                for node in graph_module.graph.nodes
                if self.layer in (node.name, node.target) and node.op.startswith("call_")
            ]
        values = _values(teacher, found)[1]
        maps = [
            name
            for name, value in values.items()
            if _is_map(value) and not Tail.of(graph_module, name).ends
        ]
        if not maps:
            what = "a convolution" if self.layer is None else f"layer={self.layer}"
            raise ModelError(
                f"the term grad_cam needs {what} that the output depends on and whose values are "
                "maps (N, channels, height, width) of more than one position, and "
                f"{teacher.pretrained.name} has {'only ' + _described(values) if found else 'none'}"
                ": name another layer, or switch the term off (enabled=false)"
            )
        return maps[-1]

    def _require_gradient(self, teacher: Network) -> None:
        """Refuse a layer that no gradient of the logits comes back to."""
        tail, name = self._tails[0], teacher.pretrained.name
        logits, values = _values(teacher, tail.inputs)
        if not torch.is_tensor(logits) or logits.dim() != 2:
            raise ModelError(f"the term grad_cam needs logits (N, classes), unlike those of {name}")
        try:
            tail.score_gradient(values)
        except RuntimeError as error:
            reason = first_line(error)
            raise ModelError(
                f"the term grad_cam finds no gradient of the logits of {name} by {tail.value}: "
                f"{reason}"
            ) from error

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss; zero where promotion has made the images."""
        assert seen.student is not None
        if seen.mark:
            return 0 * seen.student.logits.sum()
        of_teacher, of_student = self._tails
        size = (seen.batch.inputs.shape[2], seen.batch.inputs.shape[3])
        target = _map_of(of_teacher, seen.teacher.values, size).detach()
        learned = _map_of(of_student, seen.student.values, size)
        return weighted_mean((learned - target).square().mean((1, 2)), seen.batch.weights)


def _map_of(tail: Tail, values: Mapping[str, Any], size: tuple[int, int]) -> Tensor:
    return saliency_map(values[tail.value], tail.score_gradient(values), size)


@torch.no_grad()
def _values(network: Network, names: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Return the output for a black image and the values of nodes."""
    first = next(network.graph_module.parameters())
    image = torch.zeros(1, *network.pretrained.input_shape, dtype=first.dtype, device=first.device)
    output, values = expose(network.graph_module, names)(image)
    return output, dict(zip(names, values, strict=True))


def _is_map(value: Any) -> bool:
    return torch.is_tensor(value) and value.dim() == 4 and value[0, 0].numel() > 1


def _described(values: Mapping[str, Any]) -> str:
    name, value = list(values.items())[-1]
    return f"{name} {tuple(value.shape) if torch.is_tensor(value) else type(value).__name__}"
