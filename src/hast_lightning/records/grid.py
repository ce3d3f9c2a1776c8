"""A picture of synthetic images, from easy to hard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MIN_TILE = 128
"""Smaller images are enlarged by a whole factor to at least this many pixels a side."""
MAX_COLUMNS = 8
DRAWN_CHANNELS = (1, 3)
BORDER, GAP, MARGIN = 4, 14, 24
CAPTION_HEIGHT, HEADER_HEIGHT = 24, 66
LEGEND_WIDTH, LEGEND_HEIGHT = 160, 10
MIN_WIDTH = 760
"""Room that the header needs, even above a single narrow tile."""
FONT_SIZE, TITLE_SIZE = 14, 20

Color = tuple[int, int, int]
PAPER: Color = (255, 255, 255)
INK: Color = (36, 41, 47)
FADED: Color = (101, 109, 118)
WRONG: Color = (190, 30, 40)
DIFFICULTY_COLORS: tuple[Color, ...] = ((38, 160, 75), (236, 179, 36), (207, 34, 46))
"""Green, amber and red: difficulty 0, 1/2 and 1; linear between."""


@dataclass(frozen=True)
class _Layout:
    """Places of the tiles, in pixels."""

    count: int
    width: int
    height: int

    @property
    def columns(self) -> int:
        return min(self.count, MAX_COLUMNS)

    @property
    def size(self) -> tuple[int, int]:
        rows = -(-self.count // self.columns)
        width = self.columns * (self.width + 2 * BORDER + GAP) - GAP
        height = rows * (self.height + 2 * BORDER + CAPTION_HEIGHT + GAP) - GAP
        return max(width + 2 * MARGIN, MIN_WIDTH), height + HEADER_HEIGHT + 2 * MARGIN

    def corner(self, index: int) -> tuple[int, int]:
        """Return the top left corner of the border of tile ``index``."""
        row, column = divmod(index, self.columns)
        return (
            MARGIN + column * (self.width + 2 * BORDER + GAP),
            MARGIN + HEADER_HEIGHT + row * (self.height + 2 * BORDER + CAPTION_HEIGHT + GAP),
        )


def draw_grid(
    images: Tensor,
    labels: Tensor,
    difficulty: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    predictions: Tensor,
) -> Image.Image:
    """Draw the images as one picture, ordered from easy to hard.

    Every image gets a border from green (easy) to red (hard) and a caption with its label and
    difficulty ``d = 1 - p(label)`` (HAST, Li et al. 2023); a prediction that differs
    from the label is added in red.

    Args:
        images: Normalized images (N, C, H, W) with one or three channels.
        labels: Class that each image was made for (N,).
        difficulty: Difficulty in [0, 1] of each image (N,).
        mean: Per-channel mean that the images are normalized with, for pixels in [0, 1].
        std: Per-channel standard deviation of the same.
        predictions: Predicted class of each image (N,).

    Raises:
        ValueError: there are no images, a length differs, or the channels are not 1 or 3.
    """
    _check_shapes(images, labels, difficulty, predictions)
    tiles = _tiles(images, mean, std)
    layout = _Layout(len(tiles), *tiles[0].size)
    canvas = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_header(draw, len(tiles))
    for position, index in enumerate(torch.argsort(difficulty.float().cpu(), stable=True).tolist()):
        corner = layout.corner(position)
        _draw_tile(canvas, draw, corner, tiles[index], float(difficulty[index]))
        _draw_caption(draw, corner, tiles[index], int(labels[index]), int(predictions[index]))
    return canvas


def difficulty_color(difficulty: float) -> Color:
    """Return the color of a difficulty in [0, 1]; what lies outside gets the nearest end."""
    position = min(max(difficulty, 0.0), 1.0) * (len(DIFFICULTY_COLORS) - 1)
    lower = min(int(position), len(DIFFICULTY_COLORS) - 2)
    share = position - lower
    red, green, blue = (
        round(low + share * (high - low))
        for low, high in zip(DIFFICULTY_COLORS[lower], DIFFICULTY_COLORS[lower + 1], strict=True)
    )
    return red, green, blue


def _check_shapes(images: Tensor, labels: Tensor, difficulty: Tensor, predictions: Tensor) -> None:
    if images.dim() != 4 or len(images) == 0 or images.shape[1] not in DRAWN_CHANNELS:
        raise ValueError(f"images must be (N, 1 or 3, H, W) with N > 0, not {tuple(images.shape)}")
    for name, values in (
        ("labels", labels),
        ("difficulty", difficulty),
        ("predictions", predictions),
    ):
        if values.shape != images.shape[:1]:
            raise ValueError(f"{name} must be ({len(images)},), not {tuple(values.shape)}")


def _tiles(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> list[Image.Image]:
    """Return the images in RGB, enlarged by a whole factor with their pixels left square."""
    shape = (1, -1, 1, 1)
    pixels = images.detach().float().cpu() * torch.tensor(std).view(shape)
    pixels = (pixels + torch.tensor(mean).view(shape)).clamp(0, 1).mul(255).round()
    factor = max(1, -(-MIN_TILE // min(images.shape[2:])))
    rgb = pixels.to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    size = (images.shape[3] * factor, images.shape[2] * factor)
    return [Image.fromarray(array).resize(size, Image.Resampling.NEAREST) for array in rgb]


def _font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_tile(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    tile: Image.Image,
    difficulty: float,
) -> None:
    """Draw one image in its border, with its difficulty at the right below it."""
    left, top = corner
    right, bottom = left + tile.width + 2 * BORDER, top + tile.height + 2 * BORDER
    draw.rectangle((left, top, right - 1, bottom - 1), fill=difficulty_color(difficulty))
    canvas.paste(tile, (left + BORDER, top + BORDER))
    below = (right, bottom + 5)
    draw.text(below, f"d={difficulty:.2f}", font=_font(), fill=FADED, anchor="ra")


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    tile: Image.Image,
    label: int,
    predicted: int,
) -> None:
    """Draw the label at the left below an image, and a prediction that misses it."""
    left, baseline = corner[0], corner[1] + tile.height + 2 * BORDER + 5
    draw.text((left, baseline), str(label), font=_font(), fill=INK)
    if predicted != label:
        offset = draw.textlength(f"{label} ", font=_font())
        draw.text((left + offset, baseline), f"as {predicted}", font=_font(), fill=WRONG)


def _draw_header(draw: ImageDraw.ImageDraw, count: int) -> None:
    """Draw the title, and below it how to read captions, and the scale of the borders."""
    title = "1 sample" if count == 1 else f"{count} samples"
    draw.text((MARGIN, MARGIN - 6), title, font=_font(TITLE_SIZE), fill=INK)
    reading = "label, in red the prediction where it differs; difficulty d = 1 - p(label)"
    line = MARGIN + 26
    draw.text((MARGIN, line), reading, font=_font(), fill=FADED)
    left = MARGIN + draw.textlength(reading, font=_font()) + 24
    draw.text((left, line), "easy", font=_font(), fill=FADED)
    left = round(left + draw.textlength("easy ", font=_font()) + 4)
    for step in range(LEGEND_WIDTH):
        color = difficulty_color(step / (LEGEND_WIDTH - 1))
        top = line + 4
        draw.line((left + step, top, left + step, top + LEGEND_HEIGHT), fill=color)
    draw.text((left + LEGEND_WIDTH + 8, line), "hard", font=_font(), fill=FADED)
