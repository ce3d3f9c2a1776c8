"""The sources of a run, built for its network."""

from __future__ import annotations

import copy

from hast_lightning.config import Config
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site, Source
from hast_lightning.runs.modality import refuse_unsuited


def build_sources(config: Config, network: PretrainedNetwork) -> dict[str, Source]:
    """Build the sources that the stages of a run use, in the order in which they are named.

    Raises:
        UserError: a source does not fit the network, or its files cannot be read.
    """
    refuse_unsuited(config, network)
    stages = config.ordered.values()
    used = {name for stage in stages for name in (*stage.reads, *stage.improves)}
    processes = config.trainer.devices * config.trainer.num_nodes
    built = {}
    for name, source in config.sources.items():
        if name in used:
            built[name] = copy.deepcopy(source)
            holdout = config.data.holdout if name == config.main_source else 0.0
            built[name].build(Site(network, holdout, processes, f"sources.{name}"))
    return built
