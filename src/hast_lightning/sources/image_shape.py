"""Shape of images, which sources that draw them as maps ask for."""

from __future__ import annotations

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError


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
