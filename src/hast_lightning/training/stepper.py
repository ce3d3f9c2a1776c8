"""Named optimizers, with the loss scale and the precision of the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from hast_lightning.runtime.loss_scaling import LEAST_SCALE, LossScaling

if TYPE_CHECKING:
    from lightning import LightningModule


class TrainerStepper:
    """Optimizers of one loss that step together, by way of Lightning's strategy.

    Args:
        module: Whose trainer steps.
        name: Of the loss, and of its scale.
        optimizers: By name.
    """

    def __init__(
        self, module: LightningModule, name: str, optimizers: Mapping[str, Optimizer]
    ) -> None:
        self.optimizers = dict(optimizers)
        self._module, self._name = module, name
        plugin = module.trainer.precision_plugin
        self._scaling = plugin if isinstance(plugin, LossScaling) else None

    @property
    def scaled(self) -> bool:
        """Return whether losses are scaled."""
        return self._scaling is not None

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``, scaled where the precision needs it."""
        if self._scaling is not None:
            self._scaling.select(self._name)
        self._module.manual_backward(loss)

    def unscale(self) -> None:
        """Give the gradients their true length; once, before they are looked at."""
        if self._scaling is not None:
            self._scaling.select(self._name)
            for optimizer in self.optimizers.values():
                self._scaling.unscale(optimizer)

    def step(self) -> None:
        """Move the parameters, or leave the step out where a gradient is infinite."""
        if self._scaling is not None:
            self._scaling.select(self._name)
        for optimizer in self.optimizers.values():
            self._module.trainer.strategy.optimizer_step(optimizer, closure=_nothing)
        if self._scaling is not None:
            self._scaling.update()

    def scalars(self, group: str) -> dict[str, float]:
        """Return the loss scale and the steps left out; empty where nothing is scaled.

        Raises:
            FloatingPointError: no scale makes the gradients finite.
        """
        if self._scaling is None:
            return {}
        self._scaling.select(self._name)
        if self._scaling.scale < LEAST_SCALE:
            raise FloatingPointError(
                f"the gradients of {group} stay NaN or infinite whatever the loss scale"
            )
        return {
            f"{group}/loss_scale": self._scaling.scale,
            f"{group}/skipped_steps": float(self._scaling.skipped_steps),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every optimizer."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])


def _nothing() -> None:
    """Stand for the closure that Lightning wants: the gradients are there already."""
