"""Figures such as the paper's: rows of truth, masked picture and output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._extras import require

if TYPE_CHECKING:
    from PIL import Image

GAP = 4  # pixels between pictures


def triptych(truth: Tensor, mask: Tensor, output: Tensor) -> list[Tensor]:
    """Return one row of a figure: truth, truth with white holes, output.

    Args:
        truth, output: [3, H, W].
        mask: [1, H, W], nonzero = valid.
    """
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


def grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Return `tile` as a PIL image.

    Raises:
        ValueError: see `tile`.
        ImportError: Pillow is missing.
    """
    pil = require("figures.grid", "PIL.Image")
    pixels = (tile(rows) * 255).round().to(torch.uint8)
    return pil.fromarray(pixels.permute(1, 2, 0).numpy())
