"""The hybrid: a stronger composition, which a fused kernel must beat to be worth having.

The framework's dense convolutions of a masked copy, its pooling for the counts, and one coefficient a pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask != 0, x, 0)


def count_valid(x: Tensor, mask: Tensor | None, kernel: int, stride: int) -> Tensor:
    """Valid entries of each centred window, float32 [N or 1, 1, H', W']; exact, being small integers."""
    plane = x.new_ones(1, 1, *x.shape[2:], dtype=torch.float32) if mask is None else mask.float()
    return F.avg_pool2d(plane, kernel, stride, kernel // 2, divisor_override=1)


def ratio_of(window: int, count: Tensor, alive: Tensor) -> Tensor:
    return torch.where(alive, window / count.clamp(min=1), 0)


def view(vector: Tensor) -> Tensor:
    """One value for each channel, beside features."""
    return vector.view(1, -1, 1, 1)


def scaled(raw: Tensor, window: int, count: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output and updated mask from the convolution without bias."""
    with torch.no_grad():
        alive = count > 0
        ratio, new_mask = ratio_of(window, count, alive).to(raw.dtype), alive.to(raw.dtype)
    return torch.addcmul(raw * ratio, view(bias), new_mask), new_mask.expand(raw.shape[0], -1, -1, -1)
