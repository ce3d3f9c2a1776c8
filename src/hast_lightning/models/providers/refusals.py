"""Refusals that the providers share."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from hast_lightning.config import ModelConfig
from hast_lightning.errors import ModelError

_SUGGESTIONS = 5
_EXTRAS = {"pytorchcv": "paper", "efficientnet_lite0": "efficientnet"}
"""Extras that are not called as their provider is."""
_WAYS_OUT = "set model.checkpoint to weights that you have, or model.pretrained=false"


def unknown_name(config: ModelConfig, names: Sequence[str]) -> ModelError:
    """Return the error: ``model.name`` is none of the provider's ``names``."""
    close = difflib.get_close_matches(config.name, names, _SUGGESTIONS)
    hint = f"did you mean {', '.join(close)}" if close else f"for example {names[0]}"
    return ModelError(
        f"model.name={config.name!r} is no classification network of {config.provider}; {hint}"
    )


def missing_package(provider: str, package: str | None = None) -> ModelError:
    """Return the error: an optional package of a provider is not installed; none: its namesake."""
    return ModelError(
        f"model.provider={provider} needs the package {package or provider}, which is not "
        f"installed: pip install 'hast-lightning[{_EXTRAS.get(provider, provider)}]'"
    )


def no_weights(config: ModelConfig) -> ModelError:
    """Return the error: the provider has published no weights for the network."""
    return ModelError(f"{config.provider} has no weights for {config.name}: {_WAYS_OUT}")


def failed_download(file: str, folder: Path, error: BaseException) -> ModelError:
    """Published weights are neither in the cache nor to be had."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelError(
        f"the weights {file} are not in {folder} and could not be downloaded ({reason}): put the "
        f"file there, {_WAYS_OUT}"
    )


def require_published_classes(config: ModelConfig, published: int) -> None:
    """Refuse published weights for another number of classes.

    Raises:
        ModelError: ``model.num_classes`` is not ``published``.
    """
    if config.num_classes not in (None, published):
        raise ModelError(
            f"model.num_classes={config.num_classes}: the published weights of {config.name} are "
            f"for {published} classes; set model.checkpoint to others"
        )
