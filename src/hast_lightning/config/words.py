"""What of the command line's words has to be known before Hydra composes the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from hast_lightning.config.folder import config_folder
from hast_lightning.core.bits import NAME_WITH_BITS
from hast_lightning.errors import ConfigurationError, first_line

MODULES = "modules"
OTHER_FOLDERS = ("hydra.searchpath", "--config-dir", "-cd")


def named_modules(words: Iterable[str]) -> list[str]:
    """Return the modules that ``modules=package.module`` or ``modules=[one,other]`` names.

    Raises:
        ConfigurationError: what it names is no list of module names.
    """
    word = next((w for w in words if w.lstrip("+").partition("=")[0] == MODULES), None)
    if word is None:
        return []
    try:
        value = OverridesParser.create().parse_override(word).value()
    except HydraException as error:
        raise ConfigurationError(f"{word}: {first_line(error)}") from error
    named = [value] if isinstance(value, str) else value
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        raise ConfigurationError(f"{word} is no list of modules, such as modules=[package.module]")
    return named


def spelled_modules(words: Sequence[str]) -> list[str]:
    """Return the words with ``modules=one`` written as the list that the schema has."""
    names = named_modules(words)
    return [
        f"{MODULES}=[{','.join(names)}]" if w.lstrip("+").partition("=")[0] == MODULES else w
        for w in words
    ]


def refuse_typed_recipe(words: Iterable[str]) -> None:
    """Refuse ``recipe=...``, which a recipe's file says of itself and which would take none.

    Raises:
        ConfigurationError: one of the words is that; the message says what was meant.
    """
    for word in words:
        key, _, name = word.lstrip("+").partition("=")
        if key == "recipe":
            raise ConfigurationError(
                f"{word}: a recipe is taken by +experiment={name}, or by recipe={name!r} in "
                f"Python; task_name={name} is what the run is called"
            )


def register_recipes(words: Iterable[str]) -> None:
    """Make recipes known whose name says the bits of a family: ``mobilenetv2_w3a3``.

    A family is one file, ``experiment/mobilenetv2.yaml``; a name that has a file of its own is
    that file. Idempotent.

    Args:
        words: Of the command line; those that name an experiment count.
    """
    given = list(words)
    # A family may lie in a folder of the user's, which only Hydra finds.
    elsewhere = any(word.lstrip("+").startswith(OTHER_FOLDERS) for word in given)
    for word in given:
        key, _, value = word.lstrip("+").partition("=")
        for name in value.split(",") if key == "experiment" else ():
            _register(name.strip("'\""), elsewhere)


def _register(name: str, elsewhere: bool) -> None:
    found = NAME_WITH_BITS.fullmatch(name)
    folder = config_folder() / "experiment"
    if found is None or (folder / f"{name}.yaml").is_file():
        return
    family = found["head"] + (found["tail"] or "")
    if not (elsewhere or (folder / f"{family}.yaml").is_file()):
        return
    bits = {"weight_bits": int(found["weights"]), "activation_bits": int(found["activations"])}
    named = f"${{first:${{task_name}},{name}}}"
    node = {"defaults": [family, "_self_"], "recipe": named, "quantizer": bits}
    ConfigStore.instance().store(group="experiment", name=name, node=node, package="_global_")
