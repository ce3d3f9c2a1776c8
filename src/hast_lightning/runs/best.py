"""``method=best`` in the words of the method, the budget and the bits that suit a network."""

from __future__ import annotations

from collections.abc import Sequence

from hast_lightning.config import Config
from hast_lightning.config.choice import BEST, BITS, choose, fewest
from hast_lightning.errors import ConfigurationError
from hast_lightning.models.zoo import load_all
from hast_lightning.records.printing import plain_console
from hast_lightning.runtime.trainer import is_first_process


def chosen_words(config: Config, words: Sequence[str]) -> list[str]:
    """Return the words of a command with the chosen method in place of ``best``, and print them.

    What is typed goes before what is chosen.

    Args:
        config: Of the command, checked.
        words: Of the command, without Hydra's own.

    Raises:
        UserError: a recipe is named, too, or the network cannot be loaded.
    """
    said = {key: value for key, _, value in (word.lstrip("+").partition("=") for word in words)}
    if "experiment" in said:
        raise ConfigurationError(f"method={BEST}: a recipe names its method itself")
    shape = load_all(config.model, config.teachers).input_shape
    few = fewest({key: said.get(f"quantizer.{key}", "") for key in BITS})
    choice = choose(shape, few, method=True, schedule=said.get("schedule"))
    own = "quantizer" in said or any(key.startswith("ranges@") for key in said)
    chosen = [
        *(f"{group}={option}" for group, option in choice.named.items()),
        *(
            f"quantizer.{key}={choice.measured.bits}"
            for key in BITS[1:]
            if not {"quantizer.bits", f"quantizer.{key}"} & set(said)
        ),
        *choice.settings(few, quantizer=not own),
    ]
    if is_first_process():
        doubt = "" if choice.suits else f"; {choice.doubt(shape)}"
        line = f"method={BEST}: {' '.join(chosen)}{doubt}"
        plain_console().print(line, highlight=False, soft_wrap=True)
    return [*chosen, *(word for word in words if word.lstrip("+").partition("=")[0] != "method")]
