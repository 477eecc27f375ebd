"""Gradients with few output channels, of one map or of a decoder stage's two (CUDA C++ only)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import launch
from .few_outputs import Map
from .kernel_set import current
from .launch_gradients import Partial
from .lists import Plane
from .plan import power_of_two

# Of csrc/cuda/few_outputs_gradients.h.
MOST_OUTPUTS, MOST_SIDE, COLUMNS, FEW_CHANNELS, TILE, WARPS, ROWS = 4, 5, 32, 16, 16, 8, 4


class Share(NamedTuple):
    """Gradients of one source; None where not needed."""

    x: Tensor | None
    weights: Partial | None  # for launch_gradients.finish
    sums: Tensor  # [C_out] float32: of the incoming gradient over live pixels


def fits(c_out: int, kh: int, kw: int, stride: list[int], dilation: list[int]) -> bool:
    """Whether `backward` computes this, and the current kernels have it."""
    return (
        current().few_outputs_gradients is not None
        and c_out <= MOST_OUTPUTS
        and max(kh, kw) <= MOST_SIDE
        and kh * kw * c_out <= COLUMNS
        and [*stride, *dilation] == [1, 1, 1, 1]
    )


def backward(
    grad_out: Tensor,
    sources: list[Map],
    index: int,
    weight: Tensor,
    padding: tuple[int, int],
    *,
    needs_x: bool,
    needs_weights: bool,
) -> Share:
    """Gradients of source `index`, and of its share `weight` of the weights.

    `sources` is the map, or the low-resolution map and the skip, of which the last has the size that windows
    move over; `padding` is top and left. Rows of `weight` [C_out, C, kh, kw] may lie apart.
    """
    x = sources[index].x
    few = x.shape[1] <= FEW_CHANNELS
    if not few:
        x = x.contiguous(memory_format=torch.channels_last)
    n, c, h, w = x.shape
    c_out, _, kh, kw = weight.shape
    up = len(sources) > 1 and index == 0
    rows = ROWS * 2 // x.element_size() if few and not up else 1
    tiles = n * -(-h // (rows * WARPS)) * -(-w // TILE)
    parts = max(1, min(tiles, (3 if few else 2) * launch.processors(x.device)))
    size = kh * kw * c * MOST_OUTPUTS if needs_weights else 0
    # Zeros, because the kernel leaves columns out where there are fewer outputs than fit.
    partial = torch.zeros((parts, size + MOST_OUTPUTS), dtype=torch.float32, device=x.device)
    grad_x = launch.empty_features(tuple(x.shape), sources[index].x) if needs_x else None
    counted = [source.x.shape[1] for source in sources] if len(sources) > 1 else [1]
    window = sum(counted) * kh * kw
    # In float16 the scaled gradient must not overflow, nor the sum over a pixel's copies. Only windows over a
    # valid pixel of this source count, so the largest ratio is that of one such pixel.
    largest = -(-window // counted[index]) * (4 if up else 1)
    unscale = float(power_of_two(largest)) if x.dtype == torch.float16 else 1.0
    planes = [Plane.of(source.mask, source.x) for source in (sources[0], sources[-1])]
    dx = x if grad_x is None else grad_x
    current().few_outputs_gradients[(parts,)](
        x, planes[0].data, planes[1].data, grad_out, weight, dx, partial,
        *sources[-1].x.shape[2:], h, w, *grad_out.shape[2:], *padding, tiles,
        *x.stride(), *grad_out.stride(), *dx.stride(), *planes[0].strides, *planes[1].strides,
        weight.stride(0), size + MOST_OUTPUTS, float(window), unscale,
        KH=kh, KW=kw, NOUT=c_out, C=c, ROWS=rows, SOURCES=len(sources), SOURCE=index,
        COUNTED0=counted[0], COUNTED1=counted[-1], UP0=len(sources) > 1, UP1=0,
        MASK0=planes[0].kind, MASK1=planes[1].kind, NEEDS_X=needs_x, NEEDS_WEIGHTS=needs_weights,
        PRECISION=launch.precision(x.dtype),
    )  # fmt: skip
    total = partial.sum(0)
    weights = None
    if needs_weights:
        data = total[:size].view(1, 1, kh * kw, c, MOST_OUTPUTS)
        weights = Partial(data, 1, kh * kw, c, (-1,), 0, unscale)
    return Share(grad_x, weights, total[size : size + c_out])
