"""Every method that ``method=`` can name, composed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from hast_lightning.config.building import register_schemas, to_object
from hast_lightning.config.folder import config_folder
from hast_lightning.config.root import Config


def composed_methods() -> Iterator[Config]:
    """Yield the configuration of each method, by name, on the default network and budget.

    Inside of a Hydra application the methods in its search path come along.

    Raises:
        ConfigurationError: a value of a method is of the wrong type or out of range.
    """
    register_schemas()
    with _hydra():
        loader = GlobalHydra.instance().config_loader()
        for name in loader.get_group_options("method"):
            yield to_object(compose("config", overrides=[f"method={name}"]))


def _hydra() -> AbstractContextManager[Any]:
    if GlobalHydra().is_initialized():
        return nullcontext()
    return initialize_config_dir(str(config_folder()), version_base="1.3")
