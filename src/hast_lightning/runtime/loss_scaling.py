"""Mixed precision in float16: losses are scaled up, so that small gradients stay above zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.amp import GradScaler
from torch.optim import Optimizer

PRECISION: Final = "16-mixed"
LEAST_SCALE = 2.0**-16
"""32 halvings below where a scale begins: by then gradients are infinite for another reason."""


class LossScaling(MixedPrecision):
    """Lightning's plugin, with a scale of its own for each loss.

    Lightning shares one scale among all optimizers and lets each of their steps change it. The
    losses of images and student differ by orders of magnitude, so that the one that overflows
    first would decide for both; and ranks that train images of their own would come to differ in
    the scale of the student's gradients, which they average.

    A step whose gradients are infinite or NaN is left out and halves the scale; 2,000 steps
    without one double it (``torch.amp.GradScaler``).

    Args:
        device: Type of the device, ``cuda`` or ``cpu``.

    Attributes:
        skipped: Steps left out, by name of the loss.
    """

    scaler: GradScaler

    def __init__(self, device: str) -> None:
        self.scalers: dict[str, GradScaler] = {}
        self.skipped: dict[str, int] = {}
        self._selected = ""
        super().__init__(PRECISION, device, GradScaler(device))

    def select(self, name: str) -> None:
        """Scale for the loss of that name from now on."""
        self._selected = name
        self.skipped.setdefault(name, 0)
        self.scaler = self.scalers.setdefault(name, GradScaler(self.device))

    @property
    def scale(self) -> float:
        """Return what the selected loss is multiplied by."""
        return float(self.scaler.get_scale())

    @property
    def skipped_steps(self) -> int:
        """Return how many steps of the selected loss were left out."""
        return self.skipped[self._selected]

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, which must come before they are clipped."""
        self.scaler.unscale_(optimizer)

    def optimizer_step(  # type: ignore[override]  # as Lightning's own
        self,
        optimizer: Optimizer,
        model: LightningModule,
        closure: Callable[[], Any],
        **kwargs: Any,
    ) -> Any:
        """Step with unscaled gradients, or leave the step out where one is infinite.

        Unlike Lightning's it takes gradients that were unscaled already, and :meth:`update` is
        left to the caller: after it, gradients would be unscaled a second time.
        """
        closure()
        self._after_closure(model, optimizer)
        return self.scaler.step(optimizer, **kwargs)

    def update(self) -> None:
        """Adjust the scale and count a step left out; once all optimizers of the loss stepped."""
        before = self.scale
        self.scaler.update()
        self.skipped[self._selected] += self.scale < before

    def state_dict(self) -> dict[str, Any]:
        """Return scales and counts in plain values."""
        scalers = {name: scaler.state_dict() for name, scaler in self.scalers.items()}
        return {"scalers": scalers, "skipped": dict(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, state in state_dict["scalers"].items():
            self.select(name)
            self.scaler.load_state_dict(state)
        self.skipped = dict(state_dict["skipped"])
