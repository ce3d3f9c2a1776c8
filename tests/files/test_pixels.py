"""Every kind of picture is the picture that a viewer shows, or it is refused in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

from hast_lightning.errors import DataError
from hast_lightning.files.pictures import open_picture, shown_picture
from hast_lightning.files.pixels import as_shown

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
"""Every value of 8 bits once."""
PNG_GREY, PNG_RGB, PNG_GREY_ALPHA, PNG_RGBA = 0, 2, 4, 6


def png_of_16_bits(path: Path, channels: int, kind: int) -> Path:
    """Pillow writes no such file."""
    values = np.stack([GREY.astype(">u2") * 257] * channels, axis=-1).astype(">u2")
    if kind in (PNG_GREY_ALPHA, PNG_RGBA):
        values[..., -1] = 65535

    def chunk(name: bytes, content: bytes) -> bytes:
        whole = name + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", 16, 16, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def tiff(path: Path, pixels: NDArray[Any], **tags: int) -> Path:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"photometric": 262}[name]] = value
    Image.fromarray(pixels).save(path, tiffinfo=info)
    return path


def twelve_bits(path: Path) -> Path:
    """One row of two pixels, 0 and 4095, which Pillow does not write either."""
    entries = [
        (256, 4, 2), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 4, 1), (279, 4, 3),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHII", tag, kind, 1, value)
    path.write_bytes(b"II*\0" + struct.pack("<I", 12) + b"\x00\x0f\xff\0" + directory + bytes(4))
    return path


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "kind", ["grey png", "rgb png", "grey alpha png", "rgba png", "tiff", "big tiff", "pgm"]
)
def test_a_picture_of_16_bits_is_the_same_as_with_8(tmp_path: Path, kind: str, mode: str) -> None:
    wide = GREY.astype(np.uint16) * 257
    if kind.endswith("png"):
        channels, number = {
            "grey png": (1, PNG_GREY),
            "rgb png": (3, PNG_RGB),
            "grey alpha png": (2, PNG_GREY_ALPHA),
            "rgba png": (4, PNG_RGBA),
        }[kind]
        path = png_of_16_bits(tmp_path / "p.png", channels, number)
    elif kind == "pgm":
        path = tmp_path / "p.pgm"
        path.write_bytes(b"P5 16 16 65535\n" + wide.astype(">u2").tobytes())
    else:
        path = tmp_path / "p.tif"
        tiff(path, wide if kind == "tiff" else wide.astype(">u2"))
    found = np.asarray(open_picture(path, mode))
    assert found.dtype == np.uint8
    assert np.array_equal(found if mode == "L" else found[..., 0], GREY)


def test_white_is_the_largest_value_of_the_file(tmp_path: Path) -> None:
    """12 bits, and a TIFF in which zero is white."""
    assert np.asarray(open_picture(twelve_bits(tmp_path / "p.tif"), "L")).tolist() == [[0, 255]]
    path = tiff(tmp_path / "q.tif", GREY.astype(np.uint16) * 257, photometric=0)
    with Image.open(path) as stored:
        assert stored.getexif()[262] == 0
        assert np.array_equal(np.asarray(open_picture(path, "L")), 255 - GREY)


@pytest.mark.parametrize("kind", ["float tiff", "int tiff", "pfm"])
def test_a_picture_whose_white_nobody_says_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("p.pfm" if kind == "pfm" else "p.tif")
    if kind == "pfm":
        path.write_bytes(b"Pf\n16 16\n-1.0\n" + GREY.astype("<f4").tobytes())
    else:
        tiff(path, GREY.astype(np.float32 if kind == "float tiff" else np.int32))
    with pytest.raises(DataError, match="save it with 8 or 16 bits a channel") as caught:
        open_picture(path, "L")
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    with pytest.raises(DataError, match=r"data: a picture of mode .* 8 or 16 bits"):
        shown_picture(Image.open(path), "L", "data")


def on_white(alpha: int) -> int:
    return round(255 - alpha + 40 * alpha / 255)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P bytes", "P index", "RGB key", "L key", "PA"])
@pytest.mark.filterwarnings("error")
def test_what_is_transparent_lies_on_white(tmp_path: Path, kind: str) -> None:
    """The left half is opaque and of value 40, the right half cannot be seen."""
    alpha = np.zeros((4, 8), np.uint8)
    alpha[:, :4] = 255
    grey = np.full((4, 8), 40, np.uint8)
    grey[:, 4:] = 7
    layers = Image.merge("RGBA", [Image.fromarray(grey)] * 3 + [Image.fromarray(alpha)])
    palette = Image.fromarray((alpha == 0).astype(np.uint8)).convert("P")
    palette.putpalette([40, 40, 40, 7, 7, 7])
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "RGBA": (layers, {}),
        "LA": (layers.convert("LA"), {}),
        "P bytes": (palette, {"transparency": b"\xff\x00"}),
        "P index": (palette, {"transparency": 1}),
        "RGB key": (layers.convert("RGB"), {"transparency": (7, 7, 7)}),
        "L key": (Image.fromarray(grey), {"transparency": 7}),
        "PA": (layers.convert("PA"), {}),
    }
    picture, options = made[kind]
    if kind != "PA":  # no file holds it, but who reads in Python may have it
        picture.save(tmp_path / "p.png", **options)
        picture = Image.open(tmp_path / "p.png")
    for mode in ("RGB", "L"):
        found = np.asarray(as_shown(picture, mode))
        assert (found[:, :4] == 40).all() and (found[:, 4:] == 255).all(), mode


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    picture = Image.new("RGBA", (2, 2), (40, 40, 40, 128))
    assert abs(int(np.asarray(as_shown(picture, "L"))[0, 0]) - on_white(128)) <= 1


@pytest.mark.parametrize("mode", ["LAB", "CMYK", "YCbCr", "HSV", "1"])
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_other_colour_spaces_are_converted(mode: str, wanted: str) -> None:
    light = (255, 128, 128)
    values = {"LAB": light, "YCbCr": light, "HSV": (0, 0, 255), "CMYK": (0, 0, 0, 0)}
    white = Image.new(mode, (2, 2), values.get(mode, "white"))
    assert np.asarray(as_shown(white, wanted)).min() >= 254


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    picture = Image.fromarray(np.kron(GREY[:2, :3] * 40, np.ones((16, 16), np.uint8)))
    exif = Image.Exif()
    exif[274] = orientation
    picture.convert("RGB").save(tmp_path / f"p.{ending}", exif=exif)
    with Image.open(tmp_path / f"p.{ending}") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    found = open_picture(tmp_path / f"p.{ending}")
    assert found.size == ((32, 48) if orientation >= 5 else (48, 32))
    assert np.array_equal(np.asarray(found), expected)
    # Who has turned it already is not turned again.
    assert np.array_equal(np.asarray(as_shown(found, "RGB")), expected)


def test_damaged_exif_data_cost_no_picture(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "white").save(tmp_path / "p.jpg", exif=b"Exif\0\0no such thing")
    assert np.asarray(open_picture(tmp_path / "p.jpg")).min() >= 254
