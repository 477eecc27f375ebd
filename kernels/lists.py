"""Row lists: buffers that the windows kernels write and the matrix kernels follow, see rows.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .kernel_set import current
from .plan import rounded


class Plane(NamedTuple):
    """A mask as the kernels read it: integers [N, H, W], or nothing."""

    data: Tensor
    strides: tuple[int, int, int]
    kind: int  # MASK of rows.valid_at

    @classmethod
    def of(cls, mask: Tensor | None, like: Tensor) -> Plane:
        """The plane of `mask` [N or 1, 1, H, W]; `like` lends a pointer where there is none."""
        if mask is None:
            return cls(like, (0, 0, 0), 0)
        data = mask.view(_BITS[mask.element_size()])
        strides = (0 if mask.shape[0] == 1 else mask.stride(0), mask.stride(2), mask.stride(3))
        return cls(data, strides, 2 if mask.is_floating_point() else 1)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Windows(NamedTuple):
    """What a windows kernel leaves for everybody, by output pixel."""

    ratio: Tensor  # [branches, P] float32
    state: Tensor  # [P] int8: class


class RowList(NamedTuple):
    """Pixels in the order in which a matrix kernel takes them, see rows.py."""

    ints: Tensor
    words: Tensor
    limits: Tensor
    segments: int
    capacity: int  # entries of a segment

    @property
    def entries(self) -> int:
        """Of all segments."""
        return self.segments * self.capacity


def empty_mask(shape: tuple[int, ...], mask: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised updated mask in the dtype of `mask`, or else of `like`; and as kernels can store it."""
    new_mask = torch.empty(shape, dtype=like.dtype if mask is None else mask.dtype, device=like.device)
    return new_mask, new_mask.view(torch.uint8) if new_mask.dtype == torch.bool else new_mask


class Entries(NamedTuple):
    """What a windows kernel writes about every pixel, before it is sorted."""

    state: Tensor
    ints: Tensor
    words: Tensor
    counts: Tensor
    q: int  # entries of a segment
    n_blocks: int


def row_list(
    device: torch.device,
    pixels: int,
    segments: int,
    ints: int,
    words: int,
    pad: int,
    fill: Callable[[tuple[int, int], Entries, int], None],
) -> RowList:
    """Sort at most `pixels` pixels of each segment by class.

    ``fill(grid, entries, block)`` launches a windows kernel.
    """
    block = 256 if pixels <= 2**20 else 1024  # each block of `compact` sums the counts of all
    n_blocks = max(-(-pixels // block), 1)
    q = n_blocks * block
    capacity = rounded(q, pad) + 3 * pad
    if max(ints, words) * segments * capacity >= 2**31 or segments >= 2**16:
        raise ValueError(
            f"the GPU kernels cannot index {pixels} pixels in each of {segments} classes of "
            f"windows of {words} words: split the batch, or use backend='reference'"
        )

    def empty(n: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(n, dtype=dtype, device=device)

    entries = Entries(
        empty(segments * q, torch.int8),
        empty(ints * segments * q, torch.int32),
        empty(words * segments * q, torch.int64),
        empty(segments * 3 * n_blocks, torch.int32),
        q,
        n_blocks,
    )
    fill((n_blocks, segments), entries, block)
    result = RowList(
        empty(ints * segments * capacity, torch.int32),
        empty(words * segments * capacity, torch.int64),
        empty(segments * 3, torch.int32),
        segments,
        capacity,
    )
    current().compact[(n_blocks, segments)](
        *entries[:4], result.ints, result.words, result.limits, q, n_blocks, capacity,
        INTS=ints, WORDS=words, PAD=pad, BLOCK=block,
    )  # fmt: skip
    return result
