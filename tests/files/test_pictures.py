from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hast_lightning.errors import DataError
from hast_lightning.files import pictures
from hast_lightning.files.pictures import (
    Fitting,
    decode,
    find_pictures,
    normalized,
    open_picture,
    read_arrays,
    refuse_loops,
)


def write(path: Path, size: tuple[int, int] = (6, 4), value: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def same(picture: Image.Image) -> Image.Image:
    return picture


def test_pictures_come_in_the_order_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "AHEAD", 2)
    paths = [write(tmp_path / f"{number}.png", value=number) for number in range(5)]
    pixels = decode(paths[::-1], "RGB", same)
    assert pixels.shape == (5, 4, 6, 3) and pixels.dtype == np.uint8
    assert pixels[:, 0, 0, 0].tolist() == [4, 3, 2, 1, 0]
    assert decode(paths, "L", same).shape == (5, 4, 6, 1)


def test_every_kind_of_colour_becomes_rgb(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.tif"
        Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(path)
        assert np.array(open_picture(path)).min() == 255, mode


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
def test_a_damaged_picture_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    content = path.read_bytes()
    damaged = {"text": b"no picture", "empty": b"", "truncated": content[: len(content) // 2]}
    path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"p\.jpg is not a readable picture: ") as caught:
        decode([path], "RGB", same)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [10, 20])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, recwarn: pytest.WarningsRecorder
) -> None:
    """Pillow itself warns from its limit on, and refuses from twice its limit on."""
    path = write(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"huge\.png .*6x4 pixels; at most|huge\.png .*24 pixels"):
        decode([path], "RGB", same)
    assert [str(warning.message) for warning in recwarn] == []


def test_a_folder_that_contains_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "p.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match=r"key=value contains itself: .*loop links to a folder"):
        refuse_loops(tmp_path, "key=value")
    with pytest.raises(DataError, match="contains itself"):
        find_pictures(tmp_path, "key=value")


def test_only_the_arrays_that_are_asked_for_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(3), y=np.array([{}], dtype=object))
    (x,) = read_arrays(path, ("x",), "key=value")
    assert x.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="key=value cannot be read: it holds Python objects"):
        read_arrays(path, ("x", "y"), "key=value")
    with pytest.raises(DataError, match="key=value has no array 'z'; it has: x, y"):
        read_arrays(path, ("z",), "key=value")


@pytest.mark.parametrize("ratio", [1.0, 1.143, 1.25, 0.9])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_are_prepared_as_torchvision_does_it(ratio: float, mode: str) -> None:
    """Every combination of even, odd and equal sides, larger and smaller; to the last bit."""
    from torchvision import transforms

    mean, std = [0.485, 0.456, 0.406][: len(mode)], [0.229, 0.224, 0.225][: len(mode)]
    for height, width in ((32, 32), (33, 20), (7, 8)):
        expected = transforms.Compose(
            [
                transforms.Resize(round(max(height, width) * ratio)),
                transforms.CenterCrop((height, width)),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )
        for size in ((50, 90), (91, 50), (33, 33), (12, 9), (40, 41)):
            picture = Image.effect_noise(size, 80).convert(mode)
            found = normalized(Fitting(height, width, ratio)(picture), mean, std)
            assert np.array_equal(found, expected(picture).numpy()), (size, height, width)
