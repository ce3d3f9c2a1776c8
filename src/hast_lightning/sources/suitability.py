"""What sources cannot make samples for: inputs that are no images, outputs that are maps."""

from __future__ import annotations

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError
from hast_lightning.graph.outputs import puts_out_maps


def image_shape(network: PretrainedNetwork, source: str) -> tuple[int, int, int]:
    """Return (C, H, W) of the images that a network takes.

    Args:
        network: That takes them.
        source: That makes them, for the message.

    Raises:
        ConfigurationError: the network takes signals (C, L).
    """
    shape = network.input_shape
    if len(shape) != 3:
        raise ConfigurationError(
            f"{source} makes images (C, H, W), and the network {network.name} takes inputs of "
            f"{'x'.join(map(str, shape))}: choose image_bank or noise"
        )
    return shape


def refuse_maps(network: PretrainedNetwork, source: str) -> None:
    """Refuse a source of labeled samples for a network that answers each position of an image.

    Args:
        network: That the samples are for.
        source: For the message.

    Raises:
        ConfigurationError: the network puts out maps (N, classes, H, W).
    """
    if puts_out_maps(network.network):
        raise ConfigurationError(
            f"{source} gives each sample one label, and the network {network.name} puts out maps "
            "of logits: choose image_bank or latent_bank"
        )
