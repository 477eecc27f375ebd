"""Row lists: buffers that the windows kernels write and the matrix kernels follow, see triton/rows.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .kernel_set import current
from .sizes import rounded


class Windows(NamedTuple):
    """What a windows kernel leaves for everybody, by output pixel."""

    ratio: Tensor  # [branches, P] float32
    state: Tensor  # [P] int8


class RowList(NamedTuple):
    """Pixels in the order in which a matrix kernel takes them."""

    ints: Tensor
    words: Tensor
    limits: Tensor
    segments: int
    capacity: int  # entries of a segment

    @property
    def entries(self) -> int:
        """Of all segments."""
        return self.segments * self.capacity


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
    """Sort at most `pixels` pixels of each segment by state.

    ``fill(grid, entries, block)`` launches a windows kernel.
    """
    block = 256 if pixels <= 2**20 else 1024  # each block of `compact` sums the counts of all
    n_blocks = max(-(-pixels // block), 1)
    q = n_blocks * block
    capacity = rounded(q, pad) + 3 * pad
    if max(ints, words) * segments * capacity >= 2**31 or segments >= 2**16:
        raise ValueError(
            f"the GPU kernels cannot index {pixels} pixels in each of {segments} segments of "
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
        entry_state=entries.state, entry_ints=entries.ints, entry_words=entries.words, counts=entries.counts,
        Q=q, n_blocks=n_blocks, ints=result.ints, words=result.words, limits=result.limits, capacity=capacity,
        INTS=ints, WORDS=words, PAD=pad, BLOCK=block,
    )  # fmt: skip
    return result
