"""``quantize``: the command line's run as a function."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console
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
from hast_lightning.api.choice import Choice, choose
from hast_lightning.api.composition import composed
from hast_lightning.api.overrides import (
    Overrides,
    as_texts,
    chooses_files,
    concerns,
    key_of,
    refuse_ineffective,
)
from hast_lightning.api.quantized_model import QuantizedModel
from hast_lightning.api.surroundings import quiet, run_folder, undisturbed_process
from hast_lightning.config import Config, ModelConfig, refuse_two_ways_of_bits
from hast_lightning.config.literals import as_overrides, literal
from hast_lightning.config.targets import made
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.data.given import GivenData
from hast_lightning.errors import ConfigurationError
from hast_lightning.export.frozen import freeze
from hast_lightning.models import zoo
from hast_lightning.models.providers import given
from hast_lightning.records.result import Result
from hast_lightning.records.results_table import results_table
from hast_lightning.runs.assembly import Run
from hast_lightning.runs.exporting import describe
from hast_lightning.runs.pipeline import carry_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT_SAMPLES = 32
"""Samples that files of the quantized network are run on before they get their name."""
Recipe = str | Mapping[str, Any]


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
    they are not named, HAST is taken in the form that was measured on images of the network's
    size, at a budget for two CPU cores:

    - 8x8, one channel: ``hast`` and ``demo``, a minute;
    - 32x32, color: ``hast_adam`` and ``quick``, minutes;
    - 224x224, color: ``hast_imagenet_adam`` and ``evening_imagenet``, an evening.

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
        method: Name of a method (``hast-lightning command=methods`` lists them).
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
    call = _Call(
        network=network,
        input_shape=checked_input_shape(network, input_shape),
        bits=bits,
        recipe=_recipe_name(recipe),
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
            own = None if isinstance(network, str) else plan.pretrained
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
                Console().print(results_table(result))
        return _quantized(run, result)


@dataclass(frozen=True)
class _Plan:
    """A run that is about to begin.

    Attributes:
        config: Of the run, checked.
        pretrained: The network.
        options: Options of the groups ``method`` and ``schedule``, named or chosen.
        settings: What a chosen method needs beside.
        choice: None where the call names all that there is to choose.
    """

    config: Config
    pretrained: PretrainedNetwork
    options: dict[str, str]
    settings: list[str]
    choice: Choice | None


@dataclass(frozen=True)
class _Call:
    """A call, in the words of the configuration.

    Attributes:
        recipe: The name of one; none: method and budget are named, or to be chosen.
        options: Named options of the groups ``method`` and ``schedule``.
        changes: What is to be different in the recipe, or in what is chosen.
        of_network: Settings of the group ``model``.
        of_run: All others that the arguments say.
    """

    network: nn.Module | str
    input_shape: InputShape | None
    bits: Bits | None
    recipe: str | None
    options: dict[str, str]
    changes: list[str]
    of_network: list[str]
    of_run: list[str]
    overrides: list[str]
    data: Any

    def plan(self) -> _Plan:
        """Compose the configuration and load the network; of both the cheaper is done first.

        Raises:
            UserError: something does not fit together.
        """
        missing = {name: not self._names(name) for name in ("method", "schedule")}
        if self.recipe is not None or self._names("experiment") or not any(missing.values()):
            config = self._composed(self.options)
            return _Plan(config, self._pretrained(config.model), self.options, [], None)
        # The rest may make no sense without the choice, which the network decides.
        changes, overrides = (
            [text for text in texts if concerns(text, "model")]
            for texts in (self.changes, self.overrides)
        )
        model = composed([*changes, *self.of_network, "data=none", *overrides]).model
        pretrained = self._pretrained(model)
        choice = choose(pretrained.input_shape, **missing)
        options = {**choice.named, **self.options}
        own_quantizer = self._names("quantizer") or self._names("ranges")
        settings = list(choice.settings(self._weight_bits(), quantizer=not own_quantizer))
        bits = [
            f"quantizer.{kind}_bits={choice.measured.bits}" for kind in ("weight", "activation")
        ]
        config = self._composed(options, [*bits, *settings])
        return _Plan(config, pretrained, options, settings, choice)

    def text(self, plan: _Plan) -> str:
        """Return the call, for the report; objects that have no short form are named alone."""
        quantizer = plan.config.quantizer
        said: dict[str, object] = {
            "bits": (
                dict(self.bits) if isinstance(self.bits, Mapping) else tuple(quantizer.widths)
            ),
            **plan.options,
            **({} if self.recipe is None else {"recipe": self.recipe}),
            "overrides": [*plan.settings, *self.changes, *self.overrides],
            "seed": plan.config.seed,
        }
        if isinstance(self.network, nn.Module):
            pretrained = plan.pretrained
            said |= {
                "input_shape": pretrained.input_shape,
                "mean": list(pretrained.mean),
                "std": list(pretrained.std),
            }
        words = [f"{name}={value!r}" for name, value in said.items()]
        if self.data is not None:
            words.append("data=data" if is_handed_over(self.data) else f"data={str(self.data)!r}")
        if isinstance(self.network, str):
            return f"hast_lightning.quantize({self.network!r}, {', '.join(words)})"
        kind = type(self.network).__name__
        return f"hast_lightning.quantize(network, {', '.join(words)})  # network: a {kind}"

    def _names(self, group: str) -> bool:
        """Return whether the call chooses an option of a group itself."""
        texts = [*self.changes, *self.overrides]
        return group in self.options or any(key_of(text) == group for text in texts)

    def _composed(self, options: Mapping[str, str], settings: Sequence[str] = ()) -> Config:
        config = composed(
            [
                *([] if self.recipe is None else [f"+experiment={literal(self.recipe)}"]),
                *(f"{group}={literal(option)}" for group, option in options.items()),
                *(*settings, *self.changes, *self.of_network, *self.of_run, *self.overrides),
            ]
        )
        # By now they are known to be well-formed.
        refuse_two_ways_of_bits([*self.changes, *self.overrides])
        _check(config)
        return config

    def _pretrained(self, model: ModelConfig) -> PretrainedNetwork:
        if isinstance(self.network, nn.Module):
            return given.accept(self.network, model, self.input_shape)
        return zoo.load(model)

    def _weight_bits(self) -> int | None:
        """The bits of weights that are asked for, which decide between recipes."""
        texts = [*self.changes, *self.of_run, *self.overrides]
        values = {key_of(text): text.partition("=")[2].strip() for text in texts}
        # As in the group: a number for both goes before that for weights.
        wanted = (values.get(f"quantizer.{name}", "") for name in ("bits", "weight_bits"))
        return next((int(value) for value in wanted if value.isdecimal()), None)


def _recipe_name(recipe: Recipe | None) -> str | None:
    if isinstance(recipe, str):
        return recipe
    if recipe is None or isinstance(recipe, Mapping):
        return None
    raise ConfigurationError(
        f"recipe={recipe!r} must be the name of a recipe or a mapping of keys to values"
    )


def _check(config: Config) -> None:
    if not (config.trains and config.evaluate):
        raise ConfigurationError(
            f"order={config.order} evaluate={str(config.evaluate).lower()}: quantize needs a stage "
            "that calibrates or trains the student, and evaluate=true; use the command line for "
            "anything else"
        )
    if config.trainer.devices * config.trainer.num_nodes > 1:
        raise ConfigurationError(
            f"trainer.devices={config.trainer.devices} trainer.num_nodes="
            f"{config.trainer.num_nodes}: quantize runs in this process alone; use the command "
            "line for several devices"
        )


def _quantized(run: Run, result: Result | None) -> QuantizedModel:
    samples = run.module.source.preview(KEPT_SAMPLES).inputs.detach().cpu().clone()
    return QuantizedModel(freeze(run.module.student), describe(run), result, samples)
