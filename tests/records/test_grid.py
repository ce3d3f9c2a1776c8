from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor

from hast_lightning.records import grid
from hast_lightning.records.grid import difficulty_color, draw_grid

FIRST_TILE = (grid.MARGIN + grid.BORDER, grid.MARGIN + grid.HEADER_HEIGHT + grid.BORDER)
FIRST_BORDER = (grid.MARGIN, grid.MARGIN + grid.HEADER_HEIGHT)


def pixel(picture: Image.Image, place: tuple[int, int]) -> tuple[int, ...]:
    value = picture.getpixel(place)
    assert isinstance(value, tuple)
    return value


def draw(images: Tensor, difficulty: list[float]) -> Image.Image:
    half, quarter = ([value] * images.shape[1] for value in (0.5, 0.25))
    labels = torch.arange(len(images))
    return draw_grid(images, labels, torch.tensor(difficulty), half, quarter, labels)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [((1, 8, 8), 128), ((3, 32, 32), 128), ((3, 28, 28), 140), ((3, 224, 224), 224)],
)
def test_size_of_the_picture(shape: tuple[int, int, int], tile: int) -> None:
    picture = draw(torch.zeros(9, *shape), [0.5] * 9)
    assert picture.mode == "RGB"
    frame, below = tile + 2 * grid.BORDER, grid.CAPTION_HEIGHT + grid.GAP
    width = 8 * (frame + grid.GAP) - grid.GAP + 2 * grid.MARGIN
    height = 2 * (frame + below) - grid.GAP + grid.HEADER_HEIGHT + 2 * grid.MARGIN
    assert picture.size == (width, height)


def test_pixels_are_denormalized_clamped_and_enlarged_to_squares() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[0, :, 0, 1] = torch.tensor([1.0, -1.0, 9.0])
    picture = draw(image, [0.0])
    left, top = FIRST_TILE
    assert pixel(picture, (left, top)) == (128, 128, 128)
    square = 128 // 8
    for place in ((left + square, top), (left + 2 * square - 1, top + square - 1)):
        assert pixel(picture, place) == (191, 64, 255)
    assert pixel(picture, (left + 2 * square, top)) == (128, 128, 128)


def test_gray_images_become_gray() -> None:
    picture = draw(torch.full((1, 1, 8, 8), 1.0), [0.0])
    assert pixel(picture, FIRST_TILE) == (191, 191, 191)


def test_images_are_ordered_from_easy_to_hard() -> None:
    values = torch.tensor([1.0, -1.0, 0.0])
    images = values.view(3, 1, 1, 1).expand(3, 1, 8, 8)
    picture = draw(images, [0.9, 0.1, 0.5])
    step = 128 + 2 * grid.BORDER + grid.GAP
    left, top = FIRST_TILE
    assert [pixel(picture, (left + i * step, top))[0] for i in range(3)] == [64, 128, 191]
    left, top = FIRST_BORDER
    for i, hardness in enumerate((0.1, 0.5, 0.9)):
        border = pixel(picture, (left + i * step, top))
        assert border == difficulty_color(torch.tensor(hardness).item())


def test_color_goes_from_green_over_amber_to_red() -> None:
    assert (difficulty_color(0), difficulty_color(0.5), difficulty_color(1)) == (
        grid.DIFFICULTY_COLORS
    )
    red, green, _ = difficulty_color(0.25)
    assert grid.DIFFICULTY_COLORS[0][0] < red < grid.DIFFICULTY_COLORS[1][0]
    assert grid.DIFFICULTY_COLORS[0][1] < green < grid.DIFFICULTY_COLORS[1][1]
    assert difficulty_color(-1) == difficulty_color(0)
    assert difficulty_color(2) == difficulty_color(1)


def test_only_a_prediction_that_differs_is_written_in_red() -> None:
    images, labels = torch.zeros(1, 1, 8, 8), torch.tensor([7])

    def red_pixels(predicted: int) -> int:
        prediction = torch.tensor([predicted])
        picture = draw_grid(images, labels, torch.tensor([0.0]), [0.5], [0.25], prediction)
        colors = picture.getcolors(maxcolors=2**24)
        assert colors is not None
        return sum(count for count, color in colors if color == grid.WRONG)

    assert red_pixels(7) == 0
    assert red_pixels(3) > 0


def test_header_fits_above_a_single_tile() -> None:
    picture = draw(torch.zeros(1, 1, 8, 8), [0.0])
    strip = picture.crop((picture.width - grid.MARGIN, 0, picture.width, grid.HEADER_HEIGHT))
    assert strip.getcolors() == [(grid.MARGIN * grid.HEADER_HEIGHT, grid.PAPER)]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(0, 3, 8, 8), torch.zeros(0), "N > 0"),
        (torch.zeros(2, 4, 8, 8), torch.zeros(2), "1 or 3"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3), "labels must be"),
    ],
)
def test_wrong_shapes_are_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_grid(images, labels, torch.zeros(len(images)), [0.5] * 3, [0.25] * 3, labels)
