"""A call of the Python interface in the words of the configuration, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from hast_lightning.api.arguments import Bits, InputShape, is_handed_over
from hast_lightning.api.composition import composed
from hast_lightning.api.overrides import concerns, key_of
from hast_lightning.api.teachers import taught_together
from hast_lightning.config import (
    Config,
    ModelConfig,
    config_folder,
    refuse_two_ways_of_bits,
    refuse_typed_recipe,
)
from hast_lightning.config.choice import BEST, BITS, Choice, choose, fewest
from hast_lightning.config.literals import literal
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError
from hast_lightning.models import zoo
from hast_lightning.models.providers import given

Recipe = str | Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
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
class Call:
    """A call, in the words of the configuration.

    Attributes:
        recipe: The name of one; none: method and budget are named, or to be chosen.
        options: Named options of the groups ``method`` and ``schedule``.
        changes: What is to be different in the recipe, or in what is chosen.
        of_network: Settings of the group ``model``.
        of_run: All others that the arguments say.
        runs: The network is to be quantized, and not only looked at.
        teachers: Networks that teach together with it, by name.
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
    data: Any = None
    runs: bool = True
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)

    def plan(self) -> Plan:
        """Compose the configuration and load the network; of both the cheaper is done first.

        Raises:
            UserError: something does not fit together.
        """
        method, schedule = self._named("method"), self._named("schedule")
        of_recipe = self.recipe is not None or self._names("experiment")
        if method == BEST:
            if of_recipe:
                raise ConfigurationError(f"method={BEST!r}: a recipe names its method itself")
            return self._without("method").plan()
        if of_recipe or (method is not None and schedule is not None):
            config = self._composed(self.options)
            network = self._together(config, self._pretrained(config.model))
            return Plan(config, network, self.options, [], None)
        # The rest may make no sense without the choice, which the network decides.
        changes, overrides = (
            [text for text in texts if concerns(text, "model")]
            for texts in (self.changes, self.overrides)
        )
        model = composed([*changes, *self.of_network, "data=none", *overrides]).model
        pretrained = self._pretrained(model)
        few = self._few_bits()
        choice = choose(
            pretrained.input_shape,
            few,
            method=method is None,
            schedule=schedule,
        )
        options = {**self.options, **choice.named}
        own_quantizer = self._names("quantizer") or self._names("ranges")
        settings = list(choice.settings(few, quantizer=not own_quantizer))
        bits = [
            f"quantizer.{kind}_bits={choice.measured.bits}"
            for kind in ("weight", "activation")
            if not _says_bits(options.get("method") or self._value("method"))
        ]
        config = self._composed(options, [*bits, *settings])
        return Plan(config, self._together(config, pretrained), options, settings, choice)

    def text(self, plan: Plan) -> str:
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
        if self.teachers:
            words.append(f"teachers={{{', '.join(f'{name!r}: ...' for name in self.teachers)}}}")
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

    def _without(self, group: str) -> Call:
        """Return the call without what it says of a group."""
        changes, overrides = (
            [text for text in texts if key_of(text) != group]
            for texts in (self.changes, self.overrides)
        )
        options = {name: option for name, option in self.options.items() if name != group}
        return replace(self, options=options, changes=changes, overrides=overrides)

    def _named(self, group: str) -> str | None:
        """Return the option of a group that the call names; none: it names none."""
        return self._value(group).strip("'\"") or self.options.get(group)

    def _composed(self, options: Mapping[str, str], settings: Sequence[str] = ()) -> Config:
        config = composed(
            [
                *([] if self.recipe is None else [f"+experiment={literal(self.recipe)}"]),
                *(f"{group}={literal(option)}" for group, option in options.items()),
                *(*settings, *self.changes, *self.of_network, *self.of_run, *self.overrides),
            ]
        )
        # By now they are known to be well-formed.
        texts = [*self.changes, *self.overrides]
        refuse_two_ways_of_bits(texts)
        refuse_typed_recipe(texts)
        if self.runs:
            _check(config)
        return config

    def _pretrained(self, model: ModelConfig) -> PretrainedNetwork:
        if isinstance(self.network, nn.Module):
            return given.accept(self.network, model, self.input_shape)
        return zoo.load(model)

    def _together(self, config: Config, pretrained: PretrainedNetwork) -> PretrainedNetwork:
        return taught_together(pretrained, config.teachers, self.teachers)

    def _value(self, key: str) -> str:
        """Return what the call sets a key to in words; empty where it does not."""
        texts = [*self.changes, *self.of_run, *self.overrides]
        values = {key_of(text): text.partition("=")[2].strip() for text in texts}
        return values.get(key, "")

    def _few_bits(self) -> int | None:
        """Return the fewer bits of weights and activations that are asked for."""
        values = {key: self._value(f"quantizer.{key}") for key in BITS}
        return fewest(values)


def _says_bits(method: str) -> bool:
    """Return whether a method itself says how many bits there are, as one of new students does."""
    file = config_folder() / "method" / f"{method}.yaml"
    said: Any = OmegaConf.load(file) if file.is_file() else {}
    return "weight_bits" in (said.get("quantizer") or {})


def recipe_name(recipe: Recipe | None) -> str | None:
    """Return the name of a recipe; none where it is a mapping, or where there is none.

    Raises:
        ConfigurationError: it is neither.
    """
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
