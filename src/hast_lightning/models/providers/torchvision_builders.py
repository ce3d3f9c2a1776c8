"""Any classification network of torchvision, by the name of its builder."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torchvision import models as torchvision_models

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models.checkpoints import load_weights, read_state_dict
from hast_lightning.models.pretrained import describe
from hast_lightning.models.providers.refusals import (
    failed_download,
    require_published_classes,
    unknown_name,
)


def load(config: ModelConfig) -> PretrainedNetwork:
    """Load the network with the weights that torchvision recommends, or those of ``config``.

    Raises:
        ModelError: it is unknown, or its weights are missing, unsafe or do not fit.
    """
    weights = _published_weights(config)
    categories = weights.meta["categories"]
    if config.pretrained and config.checkpoint is None:
        require_published_classes(config, len(categories))
        _fetch(weights)
        # With the enum, so that the builder does what belongs to these weights, such as the
        # input transform of googlenet; what it unpickles here has just been read safely.
        network = torchvision_models.get_model(config.name, weights=weights, progress=False)
    else:
        classes = config.num_classes or len(categories)
        network = torchvision_models.get_model(config.name, weights=None, num_classes=classes)
        if config.pretrained and config.checkpoint is not None:
            load_weights(network, config.checkpoint, key=config.checkpoint_key)
    preset = weights.transforms()
    size = config.size or (preset.crop_size[0], preset.crop_size[0])
    return describe(
        network,
        config,
        (3, *size),
        preset.mean,
        preset.std,
        resize_ratio=preset.resize_size[0] / preset.crop_size[0],
        class_names=categories,
    )


def _published_weights(config: ModelConfig) -> Any:
    """The member of torchvision's enum of weights that it recommends for the network."""
    names = torchvision_models.list_models(module=torchvision_models)
    if config.name not in names:
        raise unknown_name(config, names)
    return torchvision_models.get_model_weights(config.name).DEFAULT


def _fetch(weights: Any) -> None:
    """Have the published weights in torch's cache, and make sure that they are only tensors."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if path.is_file():
        # Files in the cache are not checked by torchvision, and it unpickles them unprotected.
        read_state_dict(path)
        return
    try:
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # an URLError is an OSError
        raise failed_download(path.name, path.parent, error) from error
