"""Pixels of a picture as 8 bits a channel, the way a viewer shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of one channel of more than 8 bits, which ``convert`` would clip at 255.

Of 32-bit integers, ``I``, and floats, ``F``, nothing says which value is white.
"""
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Formats that have 16 bits at most, also where Pillow keeps them in 32."""
ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262
"""Tags of EXIF and of TIFF."""
WHITE_IS_ZERO = 0
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by the EXIF orientation that a camera wrote."""


def as_shown(picture: Picture, mode: str) -> Picture:
    """Return a picture in ``mode``, as a viewer shows it.

    One channel of 16 bits is scaled to 8, transparent pixels lie on white, and a picture that a
    camera held on its side is turned upright.

    Args:
        picture: In any mode of Pillow's, read already or not.
        mode: ``L`` or ``RGB``.

    Raises:
        ValueError: its pixels are 32-bit integers or floats, whose white nobody says.
    """
    picture.load()  # which turns a TIFF upright by itself
    turn = UPRIGHT.get(_orientation(picture))
    plain = _eight_bits(picture)
    if plain.has_transparency_data:
        layer = plain.convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if plain.mode == "LAB":  # which becomes grey only by way of colours
        plain = plain.convert("RGB")
    plain = plain.convert(mode)
    if turn is None:
        return plain
    upright = plain.transpose(turn)
    upright.info = {}  # where the orientation is, which is another one now
    return upright


def _orientation(picture: Picture) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    # Damaged EXIF data make Pillow raise several types; what they say of the picture is lost.
    except Exception:
        return 1


def _eight_bits(picture: Picture) -> Picture:
    """Return a picture whose channels have 8 bits at most, white being their largest value."""
    if picture.mode not in DEEP:
        return picture
    floats = picture.mode == "F"
    if floats or (picture.mode == "I" and picture.format not in SIXTEEN_BIT_FORMATS):
        kind = "floats" if floats else "32-bit integers"
        raise ValueError(f"its pixels are {kind}: save it with 8 or 16 bits a channel")
    tags: Any = getattr(picture, "tag_v2", {})
    white = 2 ** int(tags.get(BITS, (16,))[0]) - 1
    pixels = np.asarray(picture).astype(np.float64) * (255 / white)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        pixels = 255 - pixels
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
