"""The method and the budget that suit a network: ``method=best``, and calls that name none.

They are those that did best on networks for such images (``experiments/``), at the bits and the
budget that are asked for, on two CPU cores. What the papers released takes many times as long, and
is taken only by its names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hast_lightning.core.bits import FLOAT_BITS

BEST = "best"
"""The option of the group ``method`` in whose place the chosen one is taken."""
WITHOUT_STEPS = "one_minute"
"""The budget that has no steps for a student."""
ANY = range(1, FLOAT_BITS + 1)
BITS = ("bits", "weight_bits", "activation_bits")
"""Keys of the group ``quantizer``, the first of which goes before the others."""


@dataclass(frozen=True)
class Measured:
    """A method and a budget that were measured on one kind of images.

    Attributes:
        images: (C, H, W).
        method: The one that did best.
        schedule: The budget.
        bits: The most bits of weights and activations, at which least is lost.
        settings: What the method needs beside, in the words of the configuration.
        at_bits: What it needs at some numbers of bits only, the fewer of weights and activations.
        few: Such bits that it is for.
    """

    images: tuple[int, int, int]
    method: str
    schedule: str
    bits: int
    settings: tuple[str, ...] = ()
    at_bits: tuple[tuple[range, str], ...] = ()
    few: range = ANY


MEASURED = (
    Measured((1, 8, 8), "hast", "demo", 3, ("tuned=hast_digits",)),
    # 91.7 at W8A8 in a minute, what the network has itself.
    Measured(
        *((3, 32, 32), "without_training", WITHOUT_STEPS, 8, ("trainer.channels_last=true",)),
        few=range(7, 9),
    ),
    # Two bits: 62.7 at W2A2, where training the whole network has 49.7.
    Measured(
        *((3, 32, 32), "reconstruct", "quick", 2, ("trainer.channels_last=true",)),
        few=range(2, 3),
    ),
    Measured(
        *((3, 32, 32), "recommended", "quick", 4, ("trainer.channels_last=true",)),
        at_bits=((range(3, 4), "quantizer.ranges.lr_multiplier=5.0"),),
    ),
    # At eight bits a correction alone has what an evening of training has.
    Measured(
        *((3, 224, 224), "recommended_imagenet", "evening_imagenet", 8),
        settings=("trainer.channels_last=true",),
        at_bits=(
            (range(7, 9), "order=[synthesis,calibration,correction]"),
            # What training and units gain by leaves a correction does not.
            (range(7, 9), "sources.bank.start=smooth"),
        ),
    ),
)

_ON_THE_BANK = (
    "stages.calibration.source=bank",
    "stages.calibration.terms.bns.enabled=false",
    "stages.calibration.terms.cross_entropy.enabled=false",
)
_UNCROPPED = "transforms.crop_and_flip.enabled=false"
FOR_SIGNALS = {
    **dict.fromkeys(("hast", "recommended"), (f"stages.distillation.{_UNCROPPED}", *_ON_THE_BANK)),
    **dict.fromkeys(
        ("reconstruct", "recommended_imagenet"), (f"stages.reconstruction.{_UNCROPPED}",)
    ),
    "without_training": (),
}
"""What the methods above do otherwise where inputs are no images."""


def fewest(said: Mapping[str, str]) -> int | None:
    """Return the fewer bits of weights and activations; none where no number is said.

    Args:
        said: Values by :data:`BITS`, as they are typed.
    """
    both, *each = (said.get(key, "") for key in BITS)
    return min(
        (int(text) for text in ([both] if both.isdecimal() else each) if text.isdecimal()),
        default=None,
    )


class Choice(NamedTuple):
    """A method and a budget for a call that does not name them.

    Attributes:
        measured: On the images that are most like the network's.
        suits: The network takes such images.
        method: Whether the method is chosen, or named by the call.
        schedule: Whether the budget is.
        signals: The network takes signals (C, L), which are not cropped and which no generator
            makes.
    """

    measured: Measured
    suits: bool
    method: bool
    schedule: bool
    signals: bool = False

    @property
    def named(self) -> dict[str, str]:
        """Return the chosen options by their groups."""
        chosen = {"method": self.method, "schedule": self.schedule}
        return {group: getattr(self.measured, group) for group, it_is in chosen.items() if it_is}

    def settings(self, few: int | None, *, quantizer: bool) -> Iterator[str]:
        """Yield what the chosen method needs beside.

        Args:
            few: Bits that are wanted, the fewer of weights and activations; none: those that were
            measured.
            quantizer: The call does not name another quantizer.
        """
        if not self.method:
            return
        yield from self.measured.settings
        if self.signals:
            yield from FOR_SIGNALS[self.measured.method]
        for bits, text in self.measured.at_bits:
            fits = quantizer or not text.startswith("quantizer.")
            if fits and (few or self.measured.bits) in bits:
                yield text

    def doubt(self, input_shape: tuple[int, int, int]) -> str:
        """Return what to say where the network takes other images."""
        wanted, measured = ("x".join(map(str, s)) for s in (input_shape, self.measured.images))
        taken = " ".join(f"{group}={option!r}" for group, option in self.named.items())
        return (
            f"nothing was measured on images of {wanted}: {taken}, for {measured}, is the nearest "
            "and is taken; to name it is to take it without this warning; "
            "`hast-lightning --help groups` lists the others"
        )


def choose(
    input_shape: tuple[int, int, int],
    few: int | None = None,
    *,
    method: bool,
    schedule: str | None = None,
) -> Choice:
    """Return what suits a network that takes images of ``input_shape``, (C, H, W).

    Args:
        input_shape: Of the network.
        few: Bits that are wanted, the fewer of weights and activations; none: those that were
            measured.
        method: Choose the method.
        schedule: The budget that is asked for; none: choose it.
    """
    if method and schedule == WITHOUT_STEPS:
        known = [each for each in MEASURED if each.schedule == schedule]
    else:
        # Those for some bits alone stand first, and so they count before the others.
        known = [each for each in MEASURED if _is_for(each, few)]
    channels, *sides = input_shape
    side = math.sqrt(math.prod(sides))
    nearest = min(
        known,
        key=lambda each: (abs(math.log2(side / each.images[1])), each.images[0] != channels),
    )
    signals = len(input_shape) == 2
    return Choice(nearest, input_shape == nearest.images, method, schedule is None, signals)


def _is_for(measured: Measured, few: int | None) -> bool:
    return measured.few == ANY if few is None else few in measured.few
