"""``quantize``: the command line's run as a function."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import Tensor, nn

from hast_lightning.api.arguments import (
    InputShape,
    bits_settings,
    checked_input_shape,
    data_settings,
    is_handed_over,
    network_settings,
    surroundings_settings,
)
from hast_lightning.api.composition import as_overrides, composed, literal
from hast_lightning.api.overrides import Overrides, as_texts, concerns, key_of, refuse_ineffective
from hast_lightning.api.quantized_model import QuantizedModel
from hast_lightning.api.recipes import Choice, choose
from hast_lightning.api.surroundings import quiet, run_folder, undisturbed_process
from hast_lightning.config import Config, ModelConfig, refuse_two_ways_of_bits
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

NEEDED_STAGES = ("distill", "evaluate")
STAGES_WITH_FILES = ("export", "report")
Recipe = str | Mapping[str, Any]


def quantize(
    network: nn.Module | str,
    bits: int | tuple[int, int] | None = None,
    *,
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
) -> QuantizedModel:
    """Quantize a pretrained classifier without any training data.

    Without a recipe, the one is taken that was measured on images of the network's size and has
    the nearest number of weight bits (without ``bits``: the most):

    - 8x8, one channel: ``digits_w2a2``, ``digits_w3a3``;
    - 32x32, colour: ``cifar10_resnet20_w3a3_recommended``, ``cifar10_resnet20_w4a4_recommended``;
    - 224x224, colour: ``mobilenetv1_x025_w4a4_recommended``, ``..._w5a5_...``, ``..._w8a8_...``.

    For other images the nearest of them is taken, with a warning that names it. The schedules of
    the papers, which take many times as long, have names of their own: ``resnet18_w4a4``.

    Args:
        network: A module with its weights, which stays as it is, also inside of ``torch.compile``
            or ``DataParallel``; or the name of one: an option of the configuration's group
            ``model`` (``digits``, ``resnet18``, ...) or ``<provider>/<name>``
            (``torchvision/resnet50``, ``timm/mobilenetv3_large_100``).
        bits: Of weights and of activations, 2 to 8; one number for both; none: the recipe's.
        recipe: Name of a recipe (``hast-lightning --help`` lists the experiments), or keys and
            values to change in the one that is taken otherwise, nested as in its files.
        overrides: Single settings that go before all else: one or several in the words of the
            command line, ``schedule.student_steps=100``, or a mapping as of ``recipe``. One that
            would change nothing is refused.
        input_shape: (C, H, W) of the images of a module, or the side of square ones; none: the
            module says it itself, as those of timm and pytorchcv do.
        num_classes: To check against what the network puts out.
        mean: Per channel, what the network's input was normalized with, for pixels in [0, 1];
            none: the network's own, or ImageNet's for colour images.
        std: Per channel.
        class_names: One a class, in the order of the output.
        data: Labelled images to measure the result on, never to train on. A pair of tensors or
            arrays (images, labels); or batches of such pairs: a list, a DataLoader, or a function
            that returns them anew at every call; or a Dataset of single pairs. Images of type
            uint8 are pixels, those of floats are normalized already. Or the path of a folder with
            one folder a class, or of an .npz file; or an option of the group ``data``
            (``digits``, ...). None: student and teacher are compared on synthetic images that
            were kept from training.
        folder: Where the run leaves its files; none: nothing is left.
        seed: Of all random numbers; none: the recipe's.
        progress: Show bars and the table of results.

    Returns:
        The quantized network, with the result of the run.

    Raises:
        UserError: something handed in is wrong or does not fit together (before any expensive
            work), or training diverged.
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
        recipe=_recipe_name(recipe),
        changes=changes,
        of_network=list(network_settings(network, num_classes, mean, std, class_names)),
        of_run=[
            *bits_settings(bits),
            *data_settings(data, texts),
            *surroundings_settings(folder, seed, progress),
        ],
        overrides=texts[len(changes) :],
        data=data,
        keeps_folder=keeps_folder,
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
            run, result = carry_out(plan.config, path, call.text(plan), own, images)
            if result is not None and "report" not in plan.config.run:
                Console().print(results_table(result))
        return _quantized(run, result)


@dataclass(frozen=True)
class _Plan:
    """What is going to be run.

    Attributes:
        config: Of the run, checked.
        pretrained: The network.
        choice: The recipe that was chosen, where the call names none.
    """

    config: Config
    pretrained: PretrainedNetwork
    choice: Choice | None


@dataclass(frozen=True)
class _Call:
    """What was asked for, in the words of the configuration.

    Attributes:
        recipe: The name of one; none: to be chosen.
        changes: What is to be different in it.
        of_network: Settings of the group ``model``.
        of_run: All others that the arguments say.
    """

    network: nn.Module | str
    input_shape: InputShape | None
    recipe: str | None
    changes: list[str]
    of_network: list[str]
    of_run: list[str]
    overrides: list[str]
    data: Any
    keeps_folder: bool

    def plan(self) -> _Plan:
        """Compose the configuration and load the network; of both the cheaper is done first.

        Raises:
            UserError: something does not fit together.
        """
        if self.recipe is not None or any(concerns(text, "experiment") for text in self.overrides):
            config = self._composed(self.recipe)
            return _Plan(config, self._pretrained(config.model), None)
        # The rest may make no sense without the recipe, which the network decides.
        changes, overrides = (
            [text for text in texts if concerns(text, "model")]
            for texts in (self.changes, self.overrides)
        )
        model = composed([*changes, *self.of_network, "data=none", *overrides]).model
        pretrained = self._pretrained(model)
        choice = choose(pretrained.input_shape, self._weight_bits())
        return _Plan(self._composed(choice.recipe), pretrained, choice)

    def text(self, plan: _Plan) -> str:
        """The call, for the report; objects that have no short form are named alone."""
        config = plan.config
        said: dict[str, object] = {
            "bits": (config.quantizer.weight_bits, config.quantizer.activation_bits),
            "recipe": plan.choice.recipe if plan.choice else self.recipe,
            "overrides": [*self.changes, *self.overrides],
            "seed": config.seed,
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

    def _composed(self, recipe: str | None) -> Config:
        chosen = [] if recipe is None else [f"+experiment={literal(recipe)}"]
        config = composed([*chosen, *self.changes, *self.of_network, *self.of_run, *self.overrides])
        # By now they are known to be well-formed.
        refuse_two_ways_of_bits([*self.changes, *self.overrides])
        _check(config, self.keeps_folder)
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


def _check(config: Config, keeps_folder: bool) -> None:
    missing = [stage for stage in NEEDED_STAGES if stage not in config.run]
    if missing:
        raise ConfigurationError(
            f"run={list(config.run)}: quantize needs {' and '.join(NEEDED_STAGES)}; use the "
            "command line for anything else"
        )
    lost = [stage for stage in STAGES_WITH_FILES if stage in config.run and not keeps_folder]
    if lost:
        raise ConfigurationError(
            f"run={list(config.run)}: without folder=... a run leaves no files, so it has no use "
            f"for {' and '.join(lost)}"
        )
    if config.trainer.devices * config.trainer.num_nodes > 1:
        raise ConfigurationError(
            f"trainer.devices={config.trainer.devices} trainer.num_nodes="
            f"{config.trainer.num_nodes}: quantize runs in this process alone; use the command "
            "line for several devices"
        )


def _quantized(run: Run, result: Result | None) -> QuantizedModel:
    return QuantizedModel(freeze(run.module.student), describe(run), result)
