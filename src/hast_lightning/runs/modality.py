"""Parts that do not fit a network that denoises: without timesteps, or about classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from hast_lightning.config import Config
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.part import Part, group_of, parts
from hast_lightning.core.stage import Stage
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ConfigurationError


def refuse_unsuited(config: Config, network: PretrainedNetwork) -> None:
    """Refuse parts of a run that do not fit what the network answers.

    Raises:
        ConfigurationError: the network denoises, and a part that the run uses is not made for it.
    """
    if not network.regresses:
        return
    for key, part in _used(config):
        if part.for_diffusion:
            continue
        group = group_of(type(part))
        known = sorted(name for name, cls in parts()[group].items() if cls.for_diffusion)
        others = f", or of {group}s {', '.join(known)}" if known else ""
        raise ConfigurationError(
            f"{key}={part.kind} does not fit model.modality={network.modality}, whose network "
            f"answers pictures at a timestep with noise and not with classes: choose "
            f"method=eda_dm_style{others}"
        )


def _used(config: Config) -> Iterator[tuple[str, Part]]:
    """Yield the parts that a run uses, and where they stand; what is inside of a stage first."""
    read = {name for stage in config.ordered.values() for name in stage.reads}
    for name, stage in config.ordered.items():
        yield from ((f"stages.{name}.{key}", part) for key, part in _inside(stage))
        yield f"stages.{name}", stage
    for name, source in config.sources.items():
        if name in read:
            yield f"sources.{name}", source


def _inside(stage: Stage) -> Iterator[tuple[str, Part]]:
    """Yield the terms and transforms of a stage that count."""
    for each in fields(stage):
        value = getattr(stage, each.name)
        for name, part in value.items() if isinstance(value, dict) else ():
            active = isinstance(part, Term) and part.active
            if active or (isinstance(part, Transform) and part.enabled):
                yield f"{each.name}.{name}", part
