"""Forward with few output channels, of one map or of a decoder stage's two, in one kernel (CUDA C++ only)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pconv_ext._geometry import memory_format

from . import launch
from .kernel_set import current
from .lists import Plane, empty_mask

MOST_OUTPUTS, MOST_SIDE, FEW_CHANNELS, TILE = 8, 7, 8, 16  # of csrc/cuda/few_outputs.h


class Map(NamedTuple):
    """What the kernel reads."""

    x: Tensor
    mask: Tensor | None

    def strides(self) -> tuple[Tensor, tuple[int, ...]]:
        """Tensor and its strides: as it is, if it has few channels, else in channels-last storage."""
        _, c, h, w = self.x.shape
        if c <= FEW_CHANNELS:
            return self.x, self.x.stride()
        return self.x.contiguous(memory_format=torch.channels_last), (c * h * w, 1, c * w, c)


def fits(c_out: int, kh: int, kw: int, stride: list[int], dilation: list[int]) -> bool:
    """Whether `forward` computes this, and the current kernels have it."""
    return (
        current().few_outputs is not None
        and c_out <= MOST_OUTPUTS
        and max(kh, kw) <= MOST_SIDE
        and [*stride, *dilation] == [1, 1, 1, 1]
    )


def packed_words(channels: int, c_out: int, kh: int, kw: int, itemsize: int) -> int:
    """Words of 32 bits that the packed weights of a map have at most, see csrc/cuda/few_outputs.h."""
    if channels <= FEW_CHANNELS:
        pixel = (4 if channels <= 4 else 8) * itemsize
        return kh * -(-kw * pixel // 32) * 64
    groups = -(-kh * kw // (32 // c_out))
    return -(-channels * itemsize // 128) * groups * 4 * 256


def forward(
    sources: list[Map],
    like: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """out, in the layout of `like`, and new_mask, both of `size`.

    `sources` is the map, or the low-resolution map and the skip, of which the last has the size that windows
    move over; `padding` is top and left.
    """
    first, last = sources[0], sources[-1]
    n, _, h, w = last.x.shape
    c_out, _, kh, kw = weight.shape
    out = torch.empty(
        (n, c_out, *size), dtype=like.dtype, device=like.device, memory_format=memory_format(like)
    )
    given = last.mask if first.mask is None else first.mask
    new_mask, stored = empty_mask((n, 1, *size), given, like)
    item = weight.element_size()
    words = sum(packed_words(source.x.shape[1], c_out, kh, kw, item) for source in sources)
    packed = torch.empty(words, dtype=torch.int32, device=like.device)
    low, low_strides = first.strides()
    skip, skip_strides = last.strides() if len(sources) > 1 else (low, low_strides)
    low_plane, skip_plane = Plane.of(first.mask, like), Plane.of(last.mask, like)
    current().few_outputs[(n * -(-size[0] // TILE) * -(-size[1] // TILE),)](
        low, skip, low_plane.data, skip_plane.data, weight.contiguous(), packed,
        out if bias is None else bias.contiguous(), out, stored,
        h, w, *size, *padding, kh, kw, c_out,
        *low_strides, *low_plane.strides, *skip_strides, *skip_plane.strides,
        *first.x.shape[2:], h, w, *out.stride(),
        C0=first.x.shape[1], C1=skip.shape[1] if len(sources) > 1 else 0, UP=len(sources) > 1,
        MASK0=low_plane.kind, MASK1=skip_plane.kind,
        HAS_BIAS=bias is not None, PRECISION=launch.precision(out.dtype),
    )  # fmt: skip
    return out, new_mask
