"""Images in addresses hold the pixels that the network was shown."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from hast_lightning.report.pictures import MAX_SIDE, data_addresses


def decoded(address: str) -> Image.Image:
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_normalization_is_undone_and_what_is_out_of_range_is_clipped() -> None:
    image = torch.tensor([-9.0, 0.0, 1.0, 9.0]).view(1, 1, 2, 2)
    (address,) = data_addresses(image, [0.5], [0.25])
    pixels = np.asarray(decoded(address))
    assert pixels.shape == (2, 2, 3)
    assert pixels[..., 0].flatten().tolist() == [0, 128, 191, 255]


def test_colours_keep_their_channels() -> None:
    image = torch.zeros(1, 3, 4, 4)
    image[0, 1] = 1
    assert decoded(data_addresses(image, [0.0] * 3, [1.0] * 3)[0]).getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_are_shown_as_their_mean(channels: int) -> None:
    image = torch.full((1, channels, 4, 4), 0.2)
    address = data_addresses(image, [0.0] * channels, [1.0] * channels)[0]
    assert decoded(address).getpixel((0, 0)) == (51, 51, 51)


def test_large_images_are_shrunk_and_nan_is_black() -> None:
    image = torch.full((1, 1, 300, 200), float("nan"))
    picture = decoded(data_addresses(image, [0.5], [0.5])[0])
    assert max(picture.size) == MAX_SIDE and picture.getpixel((5, 5)) == (0, 0, 0)
