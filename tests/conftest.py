"""What makes the tests quicker, and independent of each other."""

from __future__ import annotations

import copy
import functools
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

import omegaconf
import pytest
import yaml
from hydra import version
from hydra._internal import defaults_list
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

# Numbers that tests expect are those of float32: oneDNN's own variable, which every process that a
# test starts inherits, hides the units for bfloat16 of some machines.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"

LONGEST_FIRST = (
    "test_bad_input.py",
    "test_resume.py",
    "test_devices.py",
    "test_snippets.py",
    "test_pipeline.py",
    "test_experiments.py",
    "test_resuming.py",
    "test_config.py",
    "test_arguments.py",
    "test_main.py",
    "test_reliability.py",
    "test_search_bits.py",
    "test_features.py",
    "test_sweeps.py",
    "test_artifacts.py",
    "test_any_network.py",
    "test_exporting.py",
    "test_module.py",
    "test_several_outputs.py",
    "test_benchmarks.py",
    "test_recorded_commands.py",
    "test_modules.py",
    "test_wheel.py",
)
"""Files that take long: begun last, one of them would keep a process busy while others wait."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_configure() -> None:
    """Have garbage collected less often.

    A configuration is thousands of small objects: while one is composed the collector would run
    again and again through all that torch consists of.
    """
    gc.set_threshold(100_000, 50, 100)
    yaml.load = _load_yaml
    # Pure functions of a text, called a thousand times for one configuration.
    version._get_version = functools.cache(version._get_version)
    omegaconf.base.parse = omegaconf._utils.parse = functools.cache(omegaconf.base.parse)
    defaults_list._create_interpolation_map = _interpolation_map


_all_choices = defaults_list._create_interpolation_map


def _interpolation_map(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig:
    """Collect what names in a list of defaults may refer to only where there are such names."""
    if any(not d.is_self() and d.is_interpolation() for d in defaults):
        return _all_choices(overrides, defaults, self_added)
    return OmegaConf.create()


_plain_load = yaml.load
_parsed: dict[tuple[str, str], Any] = {}


def _load_yaml(stream: Any, Loader: Any) -> Any:  # noqa: N803  # as yaml calls it
    """Parse a text once: composing one configuration reads some twenty files."""
    text = stream if isinstance(stream, str | bytes) else stream.read()
    # OmegaConf makes the class of its loader anew each time.
    key = (str(text), Loader.__name__)
    if key not in _parsed:
        if text is not stream:
            # Errors name the file, which only the stream knows.
            stream.seek(0)
        _parsed[key] = _plain_load(stream, Loader=Loader)
    return copy.deepcopy(_parsed[key])


@pytest.fixture
def undisturbed_torch() -> Iterator[None]:
    """Set back what a run in this process sets for all of it."""
    # Only here, since it imports torch and the package, which many tests do without.
    from tests import command_line

    with command_line.undisturbed_torch():
        yield


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Have small numbers again, which a run flushes to zero, in the tests behind this one."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _recipes_of_its_own() -> Iterator[None]:
    """Forget the recipes that a test made known by naming them."""
    known = dict(ConfigStore.instance().repo.get("experiment", {}))
    yield
    ConfigStore.instance().repo["experiment"] = known
