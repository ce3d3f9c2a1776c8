"""``quantize``: the command line's run as a function."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from hast_lightning.api.arguments import (
    Bits,
    InputShape,
    bits_settings,
    checked_input_shape,
    data_settings,
    device_settings,
    is_handed_over,
    network_settings,
    option_settings,
    surroundings_settings,
)
from hast_lightning.api.call import Call, Recipe, recipe_name
from hast_lightning.api.overrides import (
    Overrides,
    as_texts,
    chooses_files,
    refuse_ineffective,
)
from hast_lightning.api.quantized_model import QuantizedModel
from hast_lightning.api.surroundings import quiet, run_folder, undisturbed_process
from hast_lightning.api.teachers import Teachers, named_teachers
from hast_lightning.config.literals import as_overrides
from hast_lightning.config.targets import made
from hast_lightning.data.given import GivenData
from hast_lightning.export.frozen import freeze
from hast_lightning.models.providers import given
from hast_lightning.records.printing import plain_console
from hast_lightning.records.result import Result
from hast_lightning.records.results_table import results_table
from hast_lightning.runs.assembly import Run
from hast_lightning.runs.exporting import describe
from hast_lightning.runs.pipeline import carry_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT_SAMPLES = 32
"""Samples that files of the quantized network are run on before they get their name."""


def quantize(
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
    data: Any = None,
    folder: str | Path | None = None,
    seed: int | None = None,
    progress: bool = False,
    device: str | torch.device | None = None,
    callbacks: Sequence[Callback] = (),
    logger: Logger | Sequence[Logger] = (),
) -> QuantizedModel:
    """Quantize a pretrained classifier without any training data.

    ``method`` and ``schedule`` are words of the command line: what is done, and at what cost. Where
    they are not named, or ``method`` is ``best``, what did best on images of the network's size is
    taken, at a budget for two CPU cores:

    - 8x8, one channel: ``hast`` and ``demo``, a minute;
    - 32x32, color: ``recommended``, at two bits ``reconstruct``, and ``quick``, minutes; from seven
      bits on ``without_training`` and ``one_minute``;
    - 224x224, color: ``recommended_imagenet`` and ``evening_imagenet``, an evening.

    With ``schedule="one_minute"``, which has no steps for a student, ``without_training`` is taken.
    For other images the nearest of them is taken, with a warning that names it. What the papers
    did takes many times as long: ``schedule="released"``, with a method's own name.

    Args:
        network: A module with its weights, which stays as it is, also inside of ``torch.compile``
            or ``DataParallel``; or the name of one: an option of the configuration's group
            ``model`` (``digits``, ``resnet18``, ...) or ``<provider>/<name>``
            (``torchvision/resnet50``, ``timm/mobilenetv3_large_100``).
        bits: 2 to 8: one number for weights and activations, two of them ``(4, 8)``, or both in
            one word, ``"w4a8"``; 32, or None in a pair, is floating point: ``(4, None)`` quantizes
            weights alone. Or such by patterns of the names of layers, ``{"stem*": 8, "*": 4}``, of
            which the last that matches counts and ``"*"`` are the others, wherever it stands.
            None: those that were measured with the fewest losses, or the recipe's.
        method: Name of a method (``hast-lightning command=methods`` lists them), or ``best``.
        schedule: Name of a budget: ``demo``, ``quick``, ``released``, ...
        recipe: Name of a recipe (``hast-lightning --help groups`` lists them), which method,
            budget and bits go before; or keys and values to change in what is taken otherwise,
            nested as in its files.
        overrides: Single settings that go before all else: one or several in the words of the
            command line, ``schedule.student_steps=100``, or a mapping as of ``recipe``. One that
            would change nothing is refused.
        input_shape: (C, H, W) of the images of a module, or the side of square ones; none: the
            module says it itself, as those of timm and pytorchcv do.
        num_classes: To check against what the network puts out.
        mean: Per channel, what the network's input was normalized with, for pixels in [0, 1];
            none: the network's own, or ImageNet's for color images.
        std: Per channel.
        class_names: One per class, in the order of the output.
        teachers: Further modules that teach together with ``network``, of which the quantized one
            is made: a list, or by name. They take the same inputs, normalized in the same way, and
            put out the same classes.
        data: Labeled images to measure the result on, never to train on. A pair of tensors or
            arrays (images, labels); or batches of such pairs: a list, a DataLoader, or a function
            that returns them anew at every call; or a Dataset of single pairs. Images of type
            uint8 are pixels, those of floats are normalized already. Or the path of a folder with
            one folder per class, or of an .npz file; or an option of the group ``data``
            (``digits``, ...); or a LightningDataModule, of whose data those for validation are
            taken, or else those for tests. None: student and teacher are compared on synthetic
            images that were kept from training.
        folder: Where the run leaves its files; none: nothing is left.
        seed: Of all random numbers; none: 0, or the recipe's.
        progress: Show bars and the table of results.
        device: Where it is done: ``cpu``, ``cuda``, ``mps``; none: the best that there is.
        callbacks: Of Lightning, beside the run's own.
        logger: Of Lightning, one or several, beside the run's own.

    Returns:
        The quantized network, with the result of the run.

    Raises:
        UserError: something handed in is wrong or does not fit together, or the network is one
            that :meth:`~hast_lightning.api.quantized_model.QuantizedModel.save` cannot hold
            (before any expensive work; ``overrides="export=none"`` quantizes it all the same);
            or training diverged.
    """
    network = given.unwrapped(network) if isinstance(network, nn.Module) else network
    changes = list(as_overrides(recipe)) if isinstance(recipe, Mapping) else []
    texts = [*changes, *as_texts(overrides)]
    keeps_folder, handed_over = folder is not None, is_handed_over(data)
    refuse_ineffective(
        texts, module=isinstance(network, nn.Module), data=handed_over, keeps_folder=keeps_folder
    )
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
            *data_settings(data, texts),
            *surroundings_settings(folder, seed, progress),
            *device_settings(device),
        ],
        overrides=texts[len(changes) :],
        data=data,
        teachers=named_teachers(teachers),
    )
    with undisturbed_process(), run_folder(folder) as path:
        with quiet(not progress):
            plan = call.plan()
        if plan.choice is not None and not plan.choice.suits:
            warnings.warn(plan.choice.doubt(plan.pretrained.input_shape), stacklevel=2)
        shown = progress or plan.config.callbacks.progress
        with quiet(not shown):
            images = GivenData(data, plan.pretrained) if handed_over else None
            # One that has a name is loaded again, behind the seed, as the command line does: what
            # a network draws while it is built is part of the run's random stream.
            named = isinstance(network, str) and not call.teachers
            own = None if named else plan.pretrained
            # What save cannot hold is refused before any training.
            saved = [] if any(map(chooses_files, texts)) else ["packed"]
            run, result = carry_out(
                plan.config,
                path,
                call.text(plan),
                own,
                images,
                saved,
                made(callbacks, "callbacks", Callback),
                made([logger] if isinstance(logger, Logger) else logger, "logger", Logger),
            )
            if result is not None and not plan.config.report:
                plain_console().print(results_table(result))
        return _quantized(run, result)


def _quantized(run: Run, result: Result | None) -> QuantizedModel:
    samples = run.module.source.preview(KEPT_SAMPLES).inputs.detach().cpu().clone()
    return QuantizedModel(freeze(run.module.student), describe(run), result, samples)
