"""Figures such as the paper's: rows of truth, masked picture and output, or of several outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._extras import require

if TYPE_CHECKING:
    from PIL import Image

GAP = 4  # pixels between pictures
TITLE = 18  # pixels above the pictures for their titles


def triptych(truth: Tensor, mask: Tensor, output: Tensor) -> list[Tensor]:
    """Return one row of a figure: truth, truth with white holes, output.

    Args:
        truth, output: [C, H, W]; of other than 3 channels the first is shown, in grey.
        mask: [1, H, W], nonzero = valid.
    """
    if len(truth) != 3:
        truth, output = (one[:1].expand(3, -1, -1) for one in (truth, output))
    return [truth, torch.where(mask != 0, truth, torch.ones_like(truth)), output]


def tile(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Put pictures into a grid with white gaps.

    Args:
        rows: of the same number of pictures each, all of one shape [3, H, W], in [0, 1]; what is outside is
            clamped and NaN becomes black.

    Returns:
        float32 [3, len(rows) * (H + 4) - 4, len(rows[0]) * (W + 4) - 4] on the CPU.

    Raises:
        ValueError: no pictures, rows of several lengths, pictures of several shapes.
    """
    shapes = {tuple(picture.shape) for row in rows for picture in row}
    columns = {len(row) for row in rows}
    if len(columns) != 1 or len(shapes) != 1:
        raise ValueError(
            "figures: rows must have the same number of pictures, all of one shape [3, H, W], got rows of "
            f"{sorted(columns)} pictures with shapes {sorted(shapes)}"
        )
    _, height, width = shapes.pop()
    down, right = height + GAP, width + GAP
    sheet = torch.ones(3, len(rows) * down - GAP, columns.pop() * right - GAP)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            clean = picture.detach().float().nan_to_num(nan=0.0).clamp(0, 1)
            sheet[:, i * down : i * down + height, j * right : j * right + width] = clean
    return sheet


def grid(rows: Sequence[Sequence[Tensor]], titles: Sequence[str] = ()) -> Image.Image:
    """Return `tile` as a PIL image.

    Args:
        rows: as for `tile`.
        titles: of the columns, in small letters above them; none by default.

    Raises:
        ValueError: see `tile`; titles for another number of columns.
        ImportError: Pillow is missing.
    """
    pil = require("figures.grid", "PIL.Image")
    pixels = (tile(rows) * 255).round().to(torch.uint8)
    pictures = pil.fromarray(pixels.permute(1, 2, 0).numpy())
    if not titles:
        return pictures
    columns, width = len(rows[0]), rows[0][0].shape[2]
    if len(titles) != columns:
        raise ValueError(f"figures: titles must be one for each of {columns} columns, got {list(titles)}")
    sheet = pil.new("RGB", (pictures.width, TITLE + pictures.height), "white")
    sheet.paste(pictures, (0, TITLE))
    for i, title in enumerate(titles):
        sheet.paste(_label(title, width, titles), (i * (width + GAP), 0))
    return sheet


def _label(title: str, width: int, titles: Sequence[str]) -> Image.Image:
    """`title` in the middle of a picture of its own, in the largest letters in which all `titles` fit."""
    pil, draw = require("figures.grid", "PIL.Image"), require("figures.grid", "PIL.ImageDraw")
    load = require("figures.grid", "PIL.ImageFont").load_default
    fonts = (load(size) for size in range(TITLE - 5, 6, -1))
    font = next((one for one in fonts if max(map(one.getlength, titles)) <= width), load(6))
    label = pil.new("RGB", (width, TITLE), "white")  # what is too long for even the smallest ends with it
    left = max(0, (width - font.getlength(title)) / 2)
    draw.Draw(label).text((left, 1), title, fill="black", font=font)
    return label
