"""The naive form of public repositories: a convolution of a masked copy, and one more to count the mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ratio_of(count: Tensor, window: float) -> tuple[Tensor, Tensor]:
    """What a window's sum is multiplied by, and the updated mask."""
    new_mask = count.clamp(0, 1)
    return window / (count + 1e-8) * new_mask, new_mask


def naive_partial_conv2d(
    x: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    ones: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mask the input, convolve it, convolve the mask with `ones`, multiply by window / (count + epsilon).

    `ones` is like `weight` beside a mask [N, C_in, H, W], or [1, 1, k, k] beside a mask [N, 1, H, W].
    """
    with torch.no_grad():
        ratio, new_mask = ratio_of(
            F.conv2d(mask, ones, None, stride, padding, dilation, 1 if mask.shape[1] == 1 else groups),
            ones[0].numel(),
        )
    raw = F.conv2d(x * mask, weight, bias, stride, padding, dilation, groups)
    bias_view = bias.view(1, -1, 1, 1)
    return ((raw - bias_view) * ratio + bias_view) * new_mask, new_mask
