"""The networks of pytorchcv, whose weights most papers on zero-shot quantization start from."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet18_Weights

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.models.checkpoints import load_weights
from hast_lightning.models.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    describe,
)
from hast_lightning.models.providers.refusals import (
    failed_download,
    missing_package,
    no_weights,
    require_published_classes,
    unknown_name,
)

# What the author's training scripts normalize the three small data sets with.
SMALL_DATASETS = ("_cifar10", "_cifar100", "_svhn")
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
RESIZE_RATIO = 1 / 0.875
_NONE = "NA"


def load(config: ModelConfig) -> PretrainedNetwork:
    """Load the network with pytorchcv's published weights, or those of ``config``.

    Raises:
        ModelError: pytorchcv is not installed or does not know it, or its weights are missing,
            unsafe or do not fit.
    """
    builders = _builders()
    if config.name not in builders:
        raise unknown_name(config, sorted(builders))
    network = _build(builders[config.name], config)
    if config.checkpoint is not None:
        load_weights(network, config.checkpoint, key=config.checkpoint_key)
    elif config.pretrained:
        load_weights(network, _fetch(config), ignore_more=True)
    height, width = getattr(network, "in_size", (224, 224))
    small = config.name.endswith(SMALL_DATASETS)
    return describe(
        network,
        config,
        (3, height, width),
        CIFAR_MEAN if small else IMAGENET_MEAN,
        CIFAR_STD if small else IMAGENET_STD,
        resize_ratio=RESIZE_RATIO,
        # Its classes are ImageNet's in their usual order, and have no names there.
        class_names=None if small else ResNet18_Weights.DEFAULT.meta["categories"],
    )


def _builders() -> dict[str, Any]:
    try:
        from pytorchcv import model_provider
    except ImportError as error:
        raise missing_package("pytorchcv") from error
    builders: dict[str, Any] = model_provider._models
    return builders


def _build(builder: Any, config: ModelConfig) -> nn.Module:
    options: dict[str, Any] = {}
    if config.size is not None:
        options["in_size"] = config.size
    if config.num_classes is not None:
        if config.pretrained and config.checkpoint is None:
            require_published_classes(config, getattr(builder(), "num_classes", 0))
        options["num_classes"] = config.num_classes
    try:
        network: nn.Module = builder(**options)
    except (TypeError, ValueError, AssertionError) as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items()) or "its defaults"
        reason = f": {error}" if str(error) else ""
        raise ModelError(f"pytorchcv cannot build {config.name} with {given}{reason}") from error
    return network


def _fetch(config: ModelConfig) -> Path:
    """The file of the published weights, where pytorchcv itself keeps it."""
    from pytorchcv.models.common import model_store

    # Parameters, error, SHA-1 and release of each network, by name.
    listed = model_store.get_model_metainfo_dict().get(config.name)
    if listed is None or _NONE in listed[1:4]:
        raise no_weights(config)
    _, error_rate, sha1, release = listed
    path = Path("~/.torch/models").expanduser() / f"{config.name}-{error_rate}-{sha1[:8]}.pth"
    if not path.is_file():
        address = f"{model_store.imgclsmob_repo_url}/releases/download/{release}/{path.name}.zip"
        _download(address, path)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha1").hexdigest() != sha1:
            raise ModelError(
                f"the weights file {path} is not the published one (its SHA-1 differs): delete "
                "it to download it again, or name it with model.checkpoint"
            )
    return path


def _download(address: str, path: Path) -> None:
    """Unpack the one file of the archive at ``address``."""
    archive = path.with_name(f"{path.name}.zip")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(archive), progress=True)
        with zipfile.ZipFile(archive) as members:
            members.extract(path.name, path.parent)
    except Exception as error:  # of urllib, http.client, zipfile, or the disk
        raise failed_download(path.name, path.parent, error) from error
    finally:
        archive.unlink(missing_ok=True)
