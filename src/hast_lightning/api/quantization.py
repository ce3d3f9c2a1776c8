"""``quantize``: the command line's run as a function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hast_lightning.api.composition import as_overrides, composed, literal
from hast_lightning.api.quantized_model import QuantizedModel
from hast_lightning.api.surroundings import quiet, run_folder, undisturbed_process
from hast_lightning.artefacts import describe
from hast_lightning.assembly import Run
from hast_lightning.config import Config
from hast_lightning.data.given import GivenData
from hast_lightning.errors import ConfigurationError
from hast_lightning.export.frozen import freeze
from hast_lightning.models import zoo
from hast_lightning.models.providers import given
from hast_lightning.pipeline import carry_out
from hast_lightning.reporting.result import Result

DEFAULT_RECIPE = "digits_w3a3"
NEEDED_STAGES = ("distill", "evaluate")
Recipe = str | Mapping[str, Any]


def quantize(
    network: nn.Module | str,
    bits: int | tuple[int, int] | None = None,
    *,
    recipe: Recipe = DEFAULT_RECIPE,
    overrides: Sequence[str] = (),
    input_shape: int | tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    data: Any = None,
    folder: str | Path | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> QuantizedModel:
    """Quantize a pretrained classifier without any training data.

    Args:
        network: A module with its weights, which stays as it is; or the name of one: an option
            of the configuration's group ``model`` (``digits``, ``resnet18``, ...) or
            ``<provider>/<name>`` (``torchvision/resnet50``, ``timm/mobilenetv3_large_100``).
        bits: Of weights and of activations, 2 to 8; one number for both; none: the recipe's.
        recipe: Name of a recipe (``hast-lightning --help`` lists the experiments), or keys and
            values to change in the default one, nested as in its files.
        overrides: Single settings in the words of the command line,
            ``schedule.student_steps=100``; they go before all else.
        input_shape: (C, H, W) of the images of a module, or the side of square ones; none: the
            module says it itself, as those of timm and pytorchcv do.
        num_classes: To check against what the network puts out.
        mean: Per channel, what the network's input was normalized with, for pixels in [0, 1];
            none: the network's own, or ImageNet's for colour images.
        std: Per channel.
        class_names: One a class, in the order of the output.
        data: Labelled images to measure the result on, never to train on: a pair of tensors
            (images, labels) or an iterable of such batches, of bytes (pixels) or of floats
            (normalized already); or an option of the group ``data`` (``digits``, ...). None:
            student and teacher are compared on synthetic images that were kept from training.
        folder: Where the run leaves its files; none: nothing is left.
        seed: Of all random numbers; none: the recipe's.
        progress: Show bars and the table of results.

    Returns:
        The quantized network, with the result of the run.

    Raises:
        UserError: something handed in is wrong or does not fit together (before any expensive
            work), or training diverged.
    """
    facts = _facts(num_classes, mean, std, class_names)
    settings = [
        *_recipe(recipe),
        *_network(network, facts),
        *_bits(bits),
        *_data(data, overrides),
        *_surroundings(folder, seed, progress),
        *overrides,
    ]
    config = composed(settings)
    _check(config)
    with undisturbed_process(), run_folder(folder) as path, quiet(not progress):
        command = _command(config, recipe, overrides)
        pretrained = _pretrained(network, config, input_shape)
        images = None if data is None or isinstance(data, str) else GivenData(data, pretrained)
        # One that has a name is loaded again, behind the seed, as the command line does: what a
        # network draws while it is built is part of the run's random stream.
        handed_over = None if isinstance(network, str) else pretrained
        run, result = carry_out(config, path, command, handed_over, images)
        return _quantized(run, result)


def _recipe(recipe: Recipe) -> Iterator[str]:
    if isinstance(recipe, str):
        yield f"+experiment={literal(recipe)}"
    elif isinstance(recipe, Mapping):
        yield f"+experiment={DEFAULT_RECIPE}"
        yield from as_overrides(recipe)
    else:
        raise ConfigurationError(
            f"recipe={recipe!r} must be the name of a recipe or a mapping of keys to values"
        )


def _facts(
    num_classes: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """What the user says of the network, by the keys of the group ``model``."""
    lists = {"mean": mean, "std": std, "class_names": class_names}
    found: dict[str, Any] = {"num_classes": num_classes}
    found |= {name: None if values is None else list(values) for name, values in lists.items()}
    return {name: value for name, value in found.items() if value is not None}


def _network(network: nn.Module | str, facts: dict[str, Any]) -> Iterator[str]:
    if isinstance(network, nn.Module):
        yield "model=own"
        facts = {"provider": "given", "name": type(network).__name__, **facts}
    elif isinstance(network, str):
        provider, slash, name = network.partition("/")
        yield f"model={literal(provider)}"
        facts = {**({"name": name} if slash else {}), **facts}
    else:
        raise ConfigurationError(
            f"network is a {type(network).__name__}; expected a torch.nn.Module or a name"
        )
    yield from as_overrides(facts, "model.")


def _bits(bits: int | tuple[int, int] | None) -> Iterator[str]:
    if bits is None:
        return
    pair = (bits, bits) if isinstance(bits, int) else tuple(bits)
    if len(pair) != 2 or not all(isinstance(number, int) for number in pair):
        raise ConfigurationError(
            f"bits={bits!r} must be one number, or two: of weights and of activations"
        )
    yield from as_overrides(
        {"bits": None, "weight_bits": pair[0], "activation_bits": pair[1]}, "quantizer."
    )


def _data(data: Any, overrides: Sequence[str]) -> Iterator[str]:
    if isinstance(data, str):
        yield f"data={literal(data)}"
    elif data is not None:
        yield from ("data=none", "data.source=given", "data.holdout=0")
    elif not any(text.startswith("data=") for text in overrides):
        yield "data=none"


def _surroundings(folder: str | Path | None, seed: int | None, progress: bool) -> Iterator[str]:
    yield f"callbacks.progress={literal(progress)}"
    if seed is not None:
        yield f"seed={literal(seed)}"
    if folder is None:
        # What reports and exports leave in the folder would be gone with it.
        yield "run=[synthesize,distill,evaluate]"


def _check(config: Config) -> None:
    missing = [stage for stage in NEEDED_STAGES if stage not in config.run]
    if missing or config.command != "run" or config.resume is not None:
        raise ConfigurationError(
            f"run={list(config.run)} command={config.command} resume={config.resume}: quantize "
            f"runs {' and '.join(NEEDED_STAGES)} from the beginning; use the command line for "
            "anything else"
        )
    if config.trainer.devices * config.trainer.num_nodes > 1:
        raise ConfigurationError(
            f"trainer.devices={config.trainer.devices} trainer.num_nodes="
            f"{config.trainer.num_nodes}: quantize runs in this process alone; use the command "
            "line for several devices"
        )


def _pretrained(
    network: nn.Module | str, config: Config, input_shape: int | tuple[int, int, int] | None
) -> zoo.PretrainedNetwork:
    if isinstance(network, nn.Module):
        return given.accept(network, config.model, input_shape)
    if input_shape is not None:
        raise ConfigurationError(
            f"input_shape={input_shape}: the network {network!r} has its own; "
            "overrides=['model.input_size=...'] changes it where that is possible"
        )
    return zoo.load(config.model)


def _command(config: Config, recipe: Recipe, overrides: Sequence[str]) -> str:
    """The call, for the report; what has no short form in Python is named alone."""
    bits = config.quantizer.weight_bits, config.quantizer.activation_bits
    return (
        f"hast_lightning.quantize({config.model.name}, bits={bits}, recipe={recipe!r}, "
        f"overrides={list(overrides)}, seed={config.seed})"
    )


def _quantized(run: Run, result: Result | None) -> QuantizedModel:
    return QuantizedModel(freeze(run.module.student), describe(run), result)
