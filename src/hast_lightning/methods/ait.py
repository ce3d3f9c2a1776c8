"""AIT (Choi et al., CVPR 2022): steps long enough that weights change their integers.

The rule is called gradient inundation in the paper; it is written here as the released optimizer
has it. AIT's other half is a loss: distillation alone, without cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.optim import Optimizer

from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Hook, Stepper
from hast_lightning.quantization.fake_quant import QuantizedLayer, quantized_layers

LARGEST = 2.0**40
"""Where doubling ends once there is no other limit; a tensor that needs more is left alone."""
TOLERANCE = 0.01
"""Bisection ends within this share of the target."""


@part("hook", "gradient_inundation")
class GradientInundation(Hook):
    """Scales the step of each weight tensor until a share of its weights change their integer.

    The optimizer's step, momentum included, is doubled until the share is reached, and then
    bisected; what is kept for the steps to come is not scaled. Steps that reach the share as they
    are stay so. Only weights of convolutions and linear layers have the rule.

    Source: AIT (Choi et al., CVPR 2022), gradient inundation, as released.
    """

    target: float = 1e-3
    """Share of a tensor's weights; it falls with the learning rate, of whose full height it is."""
    bisections: int = 5
    """Halvings of the interval between the last two doublings."""
    first_limit: float = 100.0
    """Where doubling ends in the first steps, once it is exceeded."""
    first_steps: int = 200
    """Number of these first steps; after them there is no limit."""

    steps: ClassVar[Tensor]

    def __post_init__(self) -> None:
        require_range("target", self.target, 0, 1, open_minimum=True)
        require_range("bisections", self.bisections, 1)
        require_range("first_limit", self.first_limit, 1, LARGEST)
        require_range("first_steps", self.first_steps, 0)

    def bind(self, bench: Bench) -> None:
        """Begin to count steps."""
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def groups(self, student: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return groups in which every weight tensor is alone, behind the other parameters."""
        layers = layers_by_weight(student)
        alone = [
            {**group, "params": [parameter]}
            for group in groups
            for parameter in group["params"]
            if parameter in layers
        ]
        others = [
            {**group, "params": [p for p in group["params"] if p not in layers]} for group in groups
        ]
        return [group for group in others if group["params"]] + alone

    def forward(self, student: fx.GraphModule, stepper: Stepper, rate: float) -> dict[str, float]:
        """Multiply the learning rates of this step.

        Args:
            student: With its gradients, unscaled and averaged over ranks.
            stepper: Its optimizer, which has the groups that :meth:`groups` returned.
            rate: Learning rate of this step.

        Returns:
            The mean multiplier, and the share of all weights that change.
        """
        if stepper.scaled and not finite_gradients(student):
            return {}  # the step is left out
        layers = layers_by_weight(student)
        limit = self.first_limit if int(self.steps) < self.first_steps else None
        multipliers, changed, total = [], 0.0, 0
        for optimizer in stepper.optimizers.values():
            target = self.target * rate / optimizer.defaults["lr"]
            for group in optimizer.param_groups:
                (weight, *others) = group["params"]
                if others or weight not in layers or weight.grad is None:
                    continue
                step = rate * step_at_rate_one(optimizer, group, weight)
                share = ChangedShare(layers[weight], step)
                multiplier = find_multiplier(share, target, self.bisections, limit)
                group["lr"] = rate * multiplier
                multipliers.append(multiplier)
                changed += share(multiplier) * weight.numel()
                total += weight.numel()
        self.steps.add_(1)
        if not total:
            return {}
        mean = sum(multipliers) / len(multipliers)
        return {"step_multiplier": mean, "changed_integers": changed / total}


class ChangedShare:
    """The share of a layer's weights whose integer a step changes, by the step's multiplier.

    Ranges are found anew for the weights after the step, as at the next pass.

    Args:
        layer: With the weights before the step.
        step: What the step subtracts from them.
    """

    def __init__(self, layer: QuantizedLayer, step: Tensor) -> None:
        self.layer, self.step = layer, step
        self.before = self._integers(layer.weight.detach())

    @torch.no_grad()
    def __call__(self, multiplier: float) -> float:
        """Return the share, in [0, 1]."""
        after = self._integers(self.layer.weight - multiplier * self.step)
        return float((after != self.before).float().mean())

    def _integers(self, weight: Tensor) -> Tensor:
        return self.layer.weight_quantizer.integers_of(weight)


def find_multiplier(
    share: Callable[[float], float], target: float, bisections: int, limit: float | None = None
) -> float:
    """Return what a step is multiplied by, so that it reaches a target.

    One where one is enough. Else the last of the bisections, which need not lie above the target.

    Args:
        share: What a multiplier comes to.
        target: What it is to come to.
        bisections: At most so many, at least one.
        limit: Doubling ends once this is exceeded, and bisection goes on from there. None: where
            :data:`LARGEST` does not reach the target, one is returned.
    """
    if share(1.0) >= target:
        return 1.0
    high, reached = 1.0, False
    while not reached and high <= (LARGEST if limit is None else limit):
        high *= 2
        reached = share(high) >= target
    if not reached and limit is None:
        return 1.0
    low = middle = high / 2
    for _ in range(bisections):
        middle = (low + high) / 2
        found = share(middle)
        if abs(found - target) < TOLERANCE * target:
            break
        low, high = (middle, high) if found < target else (low, middle)
    return middle


def step_at_rate_one(
    optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> Tensor:
    """Return what the optimizer's next step at a learning rate of one subtracts, float32.

    It is tried on copies, so that nothing is left behind. The steps of SGD (with momentum and
    decay), Adam and AdamW are proportional to the rate.
    """
    assert parameter.grad is not None
    # The step may be smaller than what float32 resolves beside the parameter.
    wide = torch.float32 if parameter.is_mps else torch.float64
    copy = parameter.detach().to(wide, copy=True)
    copy.grad = parameter.grad.to(wide, copy=True)
    make: Any = type(optimizer)
    trial = make([{**group, "params": [copy], "lr": 1.0}])
    for name, value in optimizer.state.get(parameter, {}).items():
        floating = isinstance(value, Tensor) and value.is_floating_point()
        trial.state[copy][name] = value.to(wide, copy=True) if floating else value
    trial.step()
    return (parameter - copy).float()


def layers_by_weight(student: nn.Module) -> dict[Tensor, QuantizedLayer]:
    """Return the layers of quantized weights by their weight; a shared one has its first."""
    layers: dict[Tensor, QuantizedLayer] = {}
    for _, layer in quantized_layers(student):
        layers.setdefault(layer.weight, layer)
    return layers


def finite_gradients(student: nn.Module) -> bool:
    """Return whether no gradient is NaN or infinite."""
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients)
