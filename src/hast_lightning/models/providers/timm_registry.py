"""Any network of timm's registry, by its name with or without the tag of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch
from torch import nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.models.checkpoints import load_weights, read_state_dict
from hast_lightning.models.pretrained import describe
from hast_lightning.models.providers.refusals import (
    failed_download,
    missing_package,
    no_weights,
    require_published_classes,
    unknown_name,
)

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What weights are called on the Hugging Face hub; the safe format is asked for first."""


def load(config: ModelConfig) -> PretrainedNetwork:
    """Load the network with timm's published weights, or those of ``config``.

    Raises:
        ModelError: timm is not installed or does not know it, or its weights are missing,
            unsafe or do not fit.
    """
    timm = _timm()
    published = _published(timm, config)
    if config.pretrained and config.checkpoint is None:
        require_published_classes(config, published.num_classes)
        network = _with_published_weights(timm, config, published)
    else:
        classes = config.num_classes or published.num_classes
        network = timm.create_model(config.name, pretrained=False, num_classes=classes)
        if config.checkpoint is not None:
            load_weights(network, config.checkpoint, key=config.checkpoint_key)
    channels, *sides = published.input_size
    height, width = config.size or sides
    return describe(
        network,
        config,
        (channels, height, width),
        published.mean,
        published.std,
        resize_ratio=1 / published.crop_pct,
        class_names=_class_names(published),
    )


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise missing_package("timm") from error
    return timm


def _published(timm: Any, config: ModelConfig) -> PretrainedCfg:
    """What timm knows of the network: its input, its classes, and where the weights are."""
    if not timm.is_model(config.name):
        raise unknown_name(config, timm.list_models())
    try:
        published: PretrainedCfg | None = timm.models.get_pretrained_cfg(config.name)
    except RuntimeError as error:  # the tag is wrong; timm has told the names apart
        name = config.name.partition(".")[0]
        raise unknown_name(config, timm.list_pretrained(f"{name}.*") or [name]) from error
    if published is None:
        published = timm.models.PretrainedCfg()
    if published.num_classes < 2 and config.num_classes is None:
        raise ModelError(
            f"timm's {config.name} has no classifier: set model.num_classes, and model.checkpoint "
            "to the weights of a classifier"
        )
    return published


def _with_published_weights(timm: Any, config: ModelConfig, published: PretrainedCfg) -> nn.Module:
    state = read_state_dict(_fetch(config, published))
    network: Any
    try:
        # timm gives its weights the last touch (names, an unused background class) itself.
        overlay = {"state_dict": state}
        network = timm.create_model(config.name, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the published weights of {config.name} do not fit: {reason}") from error
    # timm keeps what it was told, and with it a second copy of all weights.
    network.pretrained_cfg = {
        key: value for key, value in network.pretrained_cfg.items() if key != "state_dict"
    }
    built: nn.Module = network
    return built


def _fetch(config: ModelConfig, published: PretrainedCfg) -> Path:
    """The file of the published weights, downloaded where it is not in the cache."""
    if published.custom_load:
        raise ModelError(
            f"the published weights of {config.name} are in a format of their own, which cannot "
            "be read safely: set model.checkpoint to a state dict, or model.pretrained=false"
        )
    if published.hf_hub_id:
        return _from_hub(published.hf_hub_id, published.hf_hub_filename)
    if published.url:
        return _from_url(published.url)
    raise no_weights(config)


def _from_hub(repository: str, file: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name, _, revision = repository.partition("@")
    files = (file,) if file else HUB_FILES
    error: Exception | None = None
    # First what is there already, so that a run needs no network twice.
    for local in (True, False):
        for wanted in files:
            try:
                path = hf_hub_download(
                    name, wanted, revision=revision or None, local_files_only=local
                )
                return Path(path)
            except EntryNotFoundError as missing:  # here or, without a network, there
                error = missing
            except Exception as failed:  # the hub's client raises those of its HTTP library
                error = failed
    assert error is not None
    cache = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    raise failed_download(f"{repository}/{files[0]}", cache, error) from error


def _from_url(url: str | tuple[str, str]) -> Path:
    address, file = (url, "") if isinstance(url, str) else url
    file = file or Path(urlparse(address).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path), progress=True)
    except Exception as error:  # of urllib, http.client, or the disk
        raise failed_download(file, path.parent, error) from error
    return path


def _class_names(published: PretrainedCfg) -> list[str] | None:
    """Names from timm's own lists, which go by the number of classes."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    if published.label_names:
        descriptions = published.label_descriptions or {}
        return [descriptions.get(name, name) for name in published.label_names]
    subset = infer_imagenet_subset({"num_classes": published.num_classes})
    if subset is None:
        return None
    # Of the synonyms the first; the rest is long.
    return [name.partition(",")[0] for name in ImageNetInfo(subset).label_descriptions()]
