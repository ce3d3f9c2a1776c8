"""Parts that do not fit what a network takes in or puts out."""

from __future__ import annotations

from collections.abc import Iterator

from hast_lightning.config import Config
from hast_lightning.core.network import DIFFUSION, TOKENS, PretrainedNetwork
from hast_lightning.core.outputs import Outputs
from hast_lightning.core.part import Part, group_of, parts
from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError
from hast_lightning.tracking.facts import is_on, parts_of, running_stages

OUTPUT = "output"
"""Setting of a term that can be about one of several outputs."""
METHODS = {DIFFUSION: "eda_dm_style", TOKENS: "self_calibration_style"}
"""A method that fits, by modality."""


def refuse_unsuited(config: Config, network: PretrainedNetwork) -> None:
    """Refuse parts of a run that do not know what to do with the network.

    Raises:
        ConfigurationError: a part that the run uses is for networks of other modalities, or for
            those that put out one tensor.
    """
    modality = network.modality
    for key, part in _used(config):
        if network.outputs is not None and (line := one_output_alone(key, part, network.outputs)):
            raise ConfigurationError(line)
        if modality in part.modalities:
            continue
        group = group_of(type(part))
        known = sorted(name for name, cls in parts()[group].items() if modality in cls.modalities)
        instead = f"of {group}s there are {', '.join(known)}" if known else f"no {group} is"
        method = METHODS.get(modality)
        raise ConfigurationError(
            f"{key}={part.kind} does not fit model.modality={modality}: it is for "
            f"{' and '.join(part.modalities)}; {instead}"
            + (f", in method={method} for example" if method and known else "")
        )


def one_output_alone(key: str, part: Part, outputs: Outputs) -> str:
    """Return why a part does not fit a network of several outputs; empty where it does.

    Args:
        key: Where the part stands.
        part: Used with the network.
        outputs: Of the network.
    """
    if part.several_outputs:
        return ""
    group = group_of(type(part))
    known = sorted(name for name, cls in parts()[group].items() if cls.several_outputs)
    instead = f"of {group}s there are {', '.join(known)}" if known else f"no {group} is"
    if isinstance(part, Term):
        named = f"{key}.output names the one that it is about, or " if hasattr(part, OUTPUT) else ""
        instead = f"{named}{key}.enabled=false leaves it out; {instead}"
    return (
        f"{key}={part.kind} is for one output, and the network puts out {len(outputs.names)}: "
        f"{outputs.in_words}; {instead}"
    )


def _used(config: Config) -> Iterator[tuple[str, Part]]:
    """Yield the parts that a run uses, and where they stand; what is inside of a stage first."""
    read = {name for stage in config.ordered.values() for name in stage.reads}
    for place, stage in running_stages(config):
        yield from ((f"stages.{place}.{key}", part) for key, part in parts_of(stage) if is_on(part))
        yield f"stages.{place}", stage
    for name, source in config.sources.items():
        if name in read:
            yield f"sources.{name}", source
