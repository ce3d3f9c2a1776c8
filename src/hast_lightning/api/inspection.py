"""``inspect``: what ``command=inspect`` shows, of a network in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hast_lightning.api.arguments import (
    Bits,
    InputShape,
    bits_settings,
    checked_input_shape,
    data_settings,
    network_settings,
    option_settings,
    surroundings_settings,
)
from hast_lightning.api.call import Call, Recipe, recipe_name
from hast_lightning.api.overrides import Overrides, as_texts, refuse_ineffective
from hast_lightning.api.surroundings import undisturbed_process
from hast_lightning.api.teachers import Teachers, named_teachers
from hast_lightning.config.literals import as_overrides
from hast_lightning.models.providers import given
from hast_lightning.runs.inspection import Inspection, examine

__all__ = ["Inspection", "inspect"]

if TYPE_CHECKING:
    from numpy.typing import NDArray


def inspect(
    network: nn.Module | str,
    bits: Bits | None = None,
    *,
    method: str | None = None,
    schedule: str | None = None,
    recipe: Recipe | None = None,
    overrides: Overrides = (),
    input_shape: InputShape | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | NDArray[Any] | Tensor | None = None,
    std: Sequence[float] | NDArray[Any] | Tensor | None = None,
    class_names: Sequence[str] | None = None,
    teachers: Teachers = (),
) -> Inspection:
    """Look at what :func:`~hast_lightning.quantize` would do with a network, and do nothing.

    It takes seconds: nothing is trained, and no file is written. A method that does not fit the
    network is no error here: ``refusal`` says why a run would be refused.

    Args:
        network: As ``quantize`` takes it, and so are all others.
        bits: Of weights and activations, of all layers or of some.
        method: Name of a method; without it the one that ``quantize`` would choose.
        schedule: Name of a budget; likewise.
        recipe: Name of a recipe, or keys and values to change.
        overrides: Single settings that go before all else.
        input_shape: (C, H, W) of the images of a module, or the side of square ones.
        num_classes: To check against what the network puts out.
        mean: Per channel, what the network's input was normalized with.
        std: Per channel.
        class_names: One per class.
        teachers: Further modules that teach together with it.

    Returns:
        Layers, bits, sizes, taps and stages; ``print`` shows them as tables.

    Raises:
        UserError: something handed in is wrong, or the network cannot be quantized.
    """
    network = given.unwrapped(network) if isinstance(network, nn.Module) else network
    changes = list(as_overrides(recipe)) if isinstance(recipe, Mapping) else []
    texts = [*changes, *as_texts(overrides)]
    refuse_ineffective(texts, module=isinstance(network, nn.Module), data=False, keeps_folder=False)
    call = Call(
        network=network,
        input_shape=checked_input_shape(network, input_shape),
        bits=bits,
        recipe=recipe_name(recipe),
        options=dict(option_settings(method=method, schedule=schedule)),
        changes=changes,
        of_network=list(network_settings(network, num_classes, mean, std, class_names)),
        of_run=[
            *bits_settings(bits),
            *data_settings(None, texts),
            *surroundings_settings(None, None, progress=False),
        ],
        overrides=texts[len(changes) :],
        runs=False,
        teachers=named_teachers(teachers),
    )
    with undisturbed_process():
        plan = call.plan()
        if plan.choice is not None and not plan.choice.suits:
            warnings.warn(plan.choice.doubt(plan.pretrained.input_shape), stacklevel=2)
        return examine(plan.config, plan.pretrained)
