"""What networks carry beside layers: in the graph afterwards, or refused in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from hast_lightning.errors import ModelError
from hast_lightning.graph.hooks import hooked_modules
from hast_lightning.graph.tracing import trace
from hast_lightning.models.preparation import prepare
from hast_lightning.models.steadiness import replaced_forwards
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.settings import QuantizerConfig
from tests.export.families import as_if_trained, noise
from tests.refusals import message_of

SHAPE = (3, 16, 16)
CLASSES = 5


class Plain(nn.Module):
    """A network in which nothing is strange."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act, self.linear = nn.ReLU(), nn.Linear(8, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def plain(kind: Callable[[], nn.Module] = Plain) -> Any:
    torch.manual_seed(0)
    return as_if_trained(kind())


def prepared(network: nn.Module) -> nn.Module:
    """What is made of a network, which is the same and holds nothing but layers."""
    images = noise(4, *SHAPE, seed=2)
    with torch.no_grad():
        expected = network(images.clone())
    before = copy.deepcopy(network.state_dict())
    found, classes = prepare(network, SHAPE, "strange")
    with torch.no_grad():
        torch.testing.assert_close(found(images.clone()), expected, rtol=1e-4, atol=1e-4)
    assert classes == CLASSES
    assert not hooked_modules(found)
    assert not replaced_forwards(found)
    assert not [node for node in trace(found).graph.nodes if node.op == "placeholder"][1:]
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    student = convert(found, QuantizerConfig(weight_bits=8, activation_bits=8))
    with torch.no_grad():
        # Activations pass through as they are, and 8 bits lose little of the weights.
        error = float(F.mse_loss(student(images.clone()), expected))
        assert error < 0.05 * float(expected.var())
    return found


def refusal(network: nn.Module) -> str:
    return message_of(partial(prepare, network, SHAPE, "strange"))


# -- hooks --------------------------------------------------------------------------------


def add_one(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output + 1


def halve(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value / 2 for value in inputs)


def named(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
    return output * 2


@pytest.mark.parametrize("place", ["conv", "bn", "act", "linear", ""])
def test_hooks_that_change_values_are_in_the_graph(place: str) -> None:
    network = plain()
    module = network.get_submodule(place)
    module.register_forward_pre_hook(halve)
    module.register_forward_hook(add_one)
    module.register_forward_hook(named, with_kwargs=True)
    prepared(network)
    assert hooked_modules(network) == [place]


def test_hooks_of_a_module_around_layers_are_in_the_graph() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), plain(Tail))
    network[0].register_forward_hook(add_one)
    prepared(network.eval())


class Tail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


def test_hooks_that_only_watch_are_left_out() -> None:
    network, seen = plain(), []
    network.act.register_forward_hook(lambda _, __, output: seen.append(output))
    network.conv.register_full_backward_hook(lambda *_: None)
    prepared(network)
    assert all(isinstance(value, Tensor) for value in seen)
    assert not any(isinstance(value, torch.fx.Proxy) for value in seen)


def test_a_hook_that_cannot_be_followed_is_named() -> None:
    network = plain()
    network.act.register_forward_hook(
        lambda _, __, output: output + 1 if float(output.detach().max()) > 0 else output
    )
    assert "the network has hooks of 'act'" in refusal(network)


def test_a_forward_of_ones_own_is_followed() -> None:
    network = plain()
    network.conv.forward = MethodType(
        lambda self, x: F.conv2d(x, self.weight, self.bias, padding=1) + 1, network.conv
    )
    prepared(network)


def test_a_forward_around_a_layers_own_is_followed_or_named() -> None:
    network = plain()
    own = network.act.forward
    network.act.forward = lambda x: own(x) * 2
    prepared(network)
    network = plain()
    inner = network.conv.forward
    network.conv.forward = lambda x: inner(x) * 2
    assert "another forward than its class in 'conv'" in refusal(network)


# -- weights that are computed anew --------------------------------------------------------

WEIGHTS: dict[str, Callable[[nn.Module], object]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight norm, by a hook": weight_norm,
    "spectral norm, by a hook": spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "pruning of channels": lambda layer: prune.ln_structured(layer, "weight", 0.3, 2, 0),
    "pruning twice": lambda layer: [
        prune.random_unstructured(layer, "weight", 0.1) for _ in range(2)
    ],
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("place", ["conv", "linear"])
def test_weights_that_are_computed_become_parameters(kind: str, place: str) -> None:
    network = plain()
    WEIGHTS[kind](network.get_submodule(place))
    found = prepared(network.eval())
    layer = found.get_submodule(place)
    assert isinstance(layer.weight, nn.Parameter)


# -- answers that depend on more than the image ----------------------------------------------


class Counting(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Averaging(Plain):
    """Centres features by a mean that it keeps, outside of its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(8), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        self.centre.mul_(0.9).add_(0.1 * features.detach().mean((0, 2, 3)))
        return features - self.centre[:, None, None]


class Remembering(Plain):
    """Python's own state."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x) * self.passes


class Root(Plain):
    """Has no answer to what is below zero."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x.sqrt())


class Impossible(Remembering):
    """One class is masked out, in which all else would be lost."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.tensor([0, 0, 0, 0, -torch.inf])


class Random(Plain):
    def features(self, x: Tensor) -> Tensor:
        return F.dropout(super().features(x))


class Centring(Plain):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x - x.mean(0))


class OneAtATime(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)).squeeze())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counting, "changes its buffer calls at every pass"),
        (Averaging, "changes its buffer centre at every pass"),
        (Remembering, "gives other answers when it is asked again"),
        (Root, "strange puts out NaN or infinite values for images of 3x16x16"),
        (Impossible, "strange puts out NaN or infinite values for images of 3x16x16"),
        (Random, "gives other answers when it is asked again"),
        (Centring, "when other images are in the batch: its code computes with all images"),
        (OneAtATime, "returns a tensor of shape (5,) for 1 image of 3x16x16"),
    ],
)
def test_what_no_file_can_hold_is_refused(kind: Callable[[], nn.Module], reason: str) -> None:
    network = plain(kind)
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert reason in refusal(network)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


@pytest.mark.parametrize("function", [False, True])
def test_batch_norms_without_running_statistics_are_refused(function: bool) -> None:
    class Batchwise(Plain):
        def features(self, x: Tensor) -> Tensor:
            return self.act(F.batch_norm(self.conv(x), None, None, training=True))

    network = plain(Batchwise) if function else plain()
    if not function:
        network.bn = nn.BatchNorm2d(8, track_running_stats=False)
    said = refusal(network.eval())
    assert "in another way when other images are in the batch" in said
    assert ("its BatchNorm bn has no running statistics" in said) is not function


def test_buffers_that_the_first_pass_makes_are_no_change() -> None:
    class Lazy(Plain):
        def features(self, x: Tensor) -> Tensor:
            if not hasattr(self, "offset"):
                self.register_buffer("offset", torch.full((8, 1, 1), 0.5), persistent=False)
            return super().features(x) + self.offset

    prepared(plain(Lazy))


# -- arguments ------------------------------------------------------------------------------


class Keywords(Plain):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(x) * kwargs.get("scale", 1)


class Anything(Plain):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs)


class Optional(Plain):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0, raw: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        features = self.features(x)
        if mask is not None:
            features = features * mask
        logits = self.linear(features.mean((2, 3))) * scale
        return (logits, features) if raw else logits


class Labels(Plain):
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(pixel_values)
        return logits if labels is None else (F.cross_entropy(logits, labels), logits)


@pytest.mark.parametrize("kind", [Keywords, Anything, Optional, Labels])
def test_arguments_beside_the_images_have_their_defaults(kind: Callable[[], nn.Module]) -> None:
    prepared(plain(kind))


def test_a_graph_with_optional_inputs_has_images_alone() -> None:
    traced = torch.fx.symbolic_trace(plain(Offset), concrete_args={"raw": False})
    prepared(traced.eval())


class Offset(Plain):
    def forward(self, x: Tensor, offset: float = 0.5, raw: bool = False) -> Tensor:
        features = self.features(x) + offset
        return features if raw else self.linear(features.mean((2, 3)))


class Needy(Plain):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear((self.features(x) * mask).mean((2, 3)))


class Paired(Plain):
    def forward(self, x: Tensor, raw: bool = True) -> Any:
        return (super().forward(x), x.long()) if raw else super().forward(x)


def test_an_argument_that_stands_in_the_way_is_named() -> None:
    assert "needs its argument 'mask' beside the images" in refusal(plain(Needy))
    assert "called with its own raw=True, puts out 1 as torch.int64" in refusal(plain(Paired))


# -- operations in place --------------------------------------------------------------------


class Twice(Plain):
    def features(self, x: Tensor) -> Tensor:
        return F.relu6(F.relu(self.bn(self.conv(x)), inplace=True), inplace=True)


class Normalizing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.1).div_(0.9))


@pytest.mark.parametrize("kind", [Twice, Normalizing])
def test_what_gradients_need_is_not_overwritten(kind: Callable[[], nn.Module]) -> None:
    found = prepared(plain(kind))
    images = noise(2, *SHAPE).requires_grad_()
    found.requires_grad_(True)(images).sum().backward()
    assert images.grad is not None


class Slices(Plain):
    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        features[:, :2] = 0
        return features


class SharedMemory(Plain):
    """What is overwritten is a part of a value that is used again."""

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x).sigmoid()
        features[:, :2].exp_().mul_(2)
        return features


def test_parts_that_are_overwritten_are_refused() -> None:
    assert "torch.cat or torch.where does the same" in refusal(plain(Slices))
    assert "overwrites values in place that its gradients need" in refusal(plain(SharedMemory))


def test_layers_that_overwrite_what_is_not_needed_stay_as_they_are() -> None:
    network = plain()
    network.act.inplace = True
    found, _ = prepare(network, SHAPE, "usual")
    assert found is network
    with pytest.raises(ModelError):
        prepare(network, (4, 16, 16), "usual")
