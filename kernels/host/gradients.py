"""Launch of triton/gradients.py: the incoming gradient, scaled for the matrix kernels, and its sum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .kernel_set import current
from .rows import Windows
from .sizes import power_of_two, rounded, row_channels


class ScaledGradient(NamedTuple):
    """The incoming gradient times the ratio of each branch, and its sum over live pixels."""

    copies: Tensor  # [branches, P, pitch], see triton/gradients.py
    pitch: int
    unscale: float  # what to multiply results with
    sums: Tensor  # [C_out] float32


def unscale_of(dtype: torch.dtype, largest: int) -> float:
    """What scaled gradients are divided by, a power of two: in float16 no ratio may make them overflow.

    `largest` possible ratio.
    """
    return float(power_of_two(largest)) if dtype == torch.float16 else 1.0


def scale_gradient(
    grad_out: Tensor, windows: Windows, largest: int, *, for_features: bool, for_weights: bool
) -> ScaledGradient:
    """See triton/gradients.py. `grad_out` [N, C_out, H, W] in any layout; `largest` possible ratio."""
    n_out = grad_out.shape[1]
    grad_out = grad_out.contiguous(memory_format=torch.channels_last)
    ratios, pixels = windows.ratio.shape
    copies = for_features or for_weights
    pitch = row_channels(n_out) or rounded(n_out, 8)
    scaled = grad_out.new_empty(ratios if copies else 0, pixels, pitch)
    block_c = min(power_of_two(pitch), 64)
    block_p = 2048 // block_c
    rounds = max(1, min(16, pixels // (block_p * 1024)))
    n_blocks = -(-pixels // (block_p * rounds))
    unscale = unscale_of(grad_out.dtype, largest)
    sums = torch.empty(n_blocks, n_out, dtype=torch.float32, device=grad_out.device)
    current().scale_gradient[(n_blocks, -(-pitch // block_c))](
        grad=grad_out, ratio=windows.ratio, pixel_state=windows.state, copies=scaled, sums=sums, P=pixels,
        copy_stride=pixels * pitch, rounds=rounds, scale=1 / unscale, NOUT=n_out, PITCH=pitch, RATIOS=ratios,
        COPIES=copies, ALL=for_features, BP=block_p, BC=block_c,
    )  # fmt: skip
    return ScaledGradient(scaled, pitch, unscale, sums.sum(0))
