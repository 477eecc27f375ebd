"""Holes grown, how deep their pixels lie, and where: squares around pixels, in whole pictures at once."""

from __future__ import annotations

import torch
from torch import Tensor


def dilated(hole: Tensor, reach: int) -> Tensor:
    """All pixels of a picture within `reach` rows and columns of a hole; bool [..., H, W]."""
    for dim in (-2, -1):
        done = 0
        while done < reach:
            step = min(done + 1, reach - done)  # further would leave gaps, at borders
            hole = hole | _moved(hole, step, dim) | _moved(hole, -step, dim)
            done += step
    return hole


def depth(hole: Tensor, most: int) -> Tensor:
    """How many rows and columns a hole pixel is from the next valid one, at most `most`; 0 where valid.

    Args:
        hole: bool [..., H, W].
        most: at most 32767.

    Returns:
        int16, of the shape of `hole`.
    """
    found, left = hole.to(torch.int16), hole
    for _ in range(most - 1):
        left = ~dilated(~left, 1)
        if not left.any():
            break
        found += left
    return found


def bounds(area: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where True pixels begin and, exclusive, end: rows, then columns; bool [H, W], somewhere True."""
    (top, bottom), (left, right) = (area.any(dim).nonzero()[[0, -1], 0].tolist() for dim in (1, 0))
    return (top, bottom + 1), (left, right + 1)


def _moved(hole: Tensor, step: int, dim: int) -> Tensor:
    """Every pixel in the place `step` further on, without those that leave the picture."""
    result, size = torch.zeros_like(hole), hole.shape[dim]
    if abs(step) < size:
        kept = size - abs(step)
        result.narrow(dim, max(step, 0), kept).copy_(hole.narrow(dim, max(-step, 0), kept))
    return result
