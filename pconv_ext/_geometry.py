"""Window geometry and memory layout, shared by the checks, the fakes and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

IntOrPair: TypeAlias = int | Sequence[int]
Padding: TypeAlias = IntOrPair | str


class Geometry(NamedTuple):
    """Where the windows of a convolution lie, in the order of the operator schemas."""

    stride: list[int]  # [sh, sw]
    padding: list[int]  # [top, bottom, left, right]
    dilation: list[int]  # [dh, dw]
    groups: int

    def output_size(self, height: int, width: int, window: Sequence[int]) -> tuple[int, int]:
        """Height and width of the output for an input of `height` x `width` and a `window` [kh, kw]."""
        (sh, sw), (top, bottom, left, right), (dh, dw), _ = self
        return (
            (height + top + bottom - dh * (window[0] - 1) - 1 + sh) // sh,
            (width + left + right - dw * (window[1] - 1) - 1 + sw) // sw,
        )


def centred(size: int, stride: Sequence[int]) -> Geometry:
    """Geometry of odd square windows, padding ``size // 2``: window p is centred on p * stride."""
    return Geometry(list(stride), [size // 2] * 4, [1, 1], 1)


def memory_format(x: Tensor) -> torch.memory_format:
    """Layout which the output takes from `x` [N, C, H, W]: channels-last if its strides are in that order.

    The rule of torch's convolutions (``suggest_memory_format`` in C++) and of the kernels, slices of
    channels-last tensors included.
    """
    least = 0
    if x.stride(1) == 0:
        return torch.contiguous_format
    for dim in (1, 3, 2, 0):
        size, stride = x.shape[dim], x.stride(dim)
        if size == 0 or stride < least or (dim == 0 and least == x.stride(1)):
            return torch.contiguous_format
        least = stride * size
    return torch.channels_last
