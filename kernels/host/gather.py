"""Launch of triton/gather.py: the matrix kernel of forward and of the gradient of the features."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import tuning
from . import devices
from .kernel_set import current
from .problem import Problem
from .rows import RowList
from .sizes import row_channels
from .taps import Taps
from .weights import Packed


class Storage(NamedTuple):
    """A tensor to gather from: channels-last storage of pixels, `pitch` elements from one to the next."""

    data: Tensor
    channels: int
    pitch: int
    width: int  # pixels of a row
    sign: int  # +1 forward, -1 where taps lead backwards
    copy_stride: int = 0  # from one pass's tensor to the next


def storage_of(x: Tensor) -> Storage:
    """`x` in channels-last storage; with few channels, filled up to a power of two of them."""
    c, w = x.shape[1], x.shape[3]
    pitch = row_channels(c)
    if pitch and pitch != c:
        return Storage(
            torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, pitch - c)).contiguous(), c, pitch, w, 1
        )
    return Storage(x.contiguous(memory_format=torch.channels_last), c, c, w, 1)


class Operand(NamedTuple):
    """What is gathered, and what it is multiplied with."""

    storage: Storage
    taps: Taps
    weights: Packed

    def steps(self) -> tuple[int, int]:
        """Pixels from one tap to the next, down and across."""
        storage, taps, _ = self
        return storage.sign * taps.y.jump * storage.width, storage.sign * taps.x.jump

    def constants(self) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """GATHER and PASSES; see triton/gather.py, accumulate."""
        storage, taps, packed = self
        return _constants(storage.channels, storage.pitch, taps, packed.bk, packed.kp, packed.row_channels)


@lru_cache(maxsize=1024)
def _constants(
    channels: int, pitch: int, taps: Taps, bk: int, kp: int, row_channels: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    passes = tuple(map(tuple, taps.passes))
    slab = taps.slab
    if row_channels:  # a slot is a row of taps
        rows = taps.y.taps
        passes = tuple((*one[:4], i * rows, *one[5:]) for i, one in enumerate(passes))
        shared = taps.slab == 0 and len(taps.y.first) * len(taps.x.first) == 1
        slab = 0 if shared else rows * len(passes)
    steps = (taps.y.step, taps.x.step, taps.x.taps, slab)
    return (channels, pitch, bk, kp, *steps, row_channels, taps.words), passes


def blocks(p: Problem, rows: int, n_out: int) -> tuning.Blocks:
    """Configuration of `matmul` for `rows` pixels and `n_out` channels."""
    like = p.call.like
    return tuning.gather_blocks(rows, n_out, like.dtype, devices.capability(like.device), p.precision)


def matmul(
    p: Problem,
    row: RowList,
    operands: list[Operand],
    out: Tensor,
    blocks: tuning.Blocks,
    *,
    ratio: Tensor | None = None,
    bias: Tensor | None = None,
    unscale: float = 1.0,
) -> None:
    """out [N, C, H, W] (channels-last storage) of the gathered taps times the packed weights.

    `ratio` [branches, pixels] rescales between the passes, `bias` [C] is added where pixels are live.
    """
    n_out = out.shape[1]
    np_ = blocks.filled(n_out)
    first, last = operands[0], operands[-1]
    (tap_y0, tap_x0), (tap_y1, tap_x1) = first.steps(), last.steps()
    gather0, passes0 = first.constants()
    gather1, passes1 = last.constants() if len(operands) > 1 else ((), ())
    current().gather_matmul[(row.capacity // blocks.m * (np_ // blocks.n), row.segments)](
        x0=first.storage.data, x1=last.storage.data, weights0=first.weights.data, weights1=last.weights.data,
        tap_y0=tap_y0, tap_x0=tap_x0, tap_y1=tap_y1, tap_x1=tap_x1, GATHER0=gather0, PASSES0=passes0,
        GATHER1=gather1, PASSES1=passes1, ints=row.ints, words=row.words, limits=row.limits,
        ratio=out if ratio is None else ratio, bias=out if bias is None else bias.contiguous(), out=out,
        entries=row.entries, capacity=row.capacity, P=0 if ratio is None else ratio.shape[1],
        copy_stride=first.storage.copy_stride, unscale=unscale,
        FIRST_Y=first.taps.y.first, FIRST_X=first.taps.x.first,
        WORDS0=first.taps.words, NOUT=n_out, NP=np_, RATIOS=0 if ratio is None else ratio.shape[0],
        PLAIN_PASS=len(first.taps.passes) - 1, HAS_BIAS=bias is not None,
        BM=blocks.m, BN=blocks.n, STAGES=blocks.stages, PRECISION=p.precision,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
