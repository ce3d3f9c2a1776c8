"""Where the YAML files of the configuration are."""

from __future__ import annotations

from pathlib import Path


def config_folder() -> Path:
    """The Hydra configuration: the checkout's ``conf/``, or the copy inside the package.

    A wheel carries ``conf/`` inside the package; in a checkout it lies beside ``src/``.
    """
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "conf"
    if (checkout / "config.yaml").is_file() and (package.parents[1] / "pyproject.toml").is_file():
        return checkout
    return package / "conf"
