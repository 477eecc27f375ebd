"""Launch of triton/gather.py: the matrix kernel of forward and of the gradient of the features."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tuning
from . import devices
from .kernel_set import current
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

    def constants(self, number: int) -> dict[str, Any]:
        """GATHER, PASSES and the steps of operand `number`; see triton/gather.py, accumulate."""
        storage, taps, packed = self
        gather, passes = _constants(storage.channels, storage.pitch, taps, *packed[1:])
        return {f"GATHER{number}": gather, f"PASSES{number}": passes}

    def steps(self, number: int) -> dict[str, Any]:
        """Pixels from one tap to the next, and the tensors."""
        storage, taps, packed = self
        return {
            f"x{number}": storage.data,
            f"weights{number}": packed.data,
            f"tap_y{number}": storage.sign * taps.y.jump * storage.width,
            f"tap_x{number}": storage.sign * taps.x.jump,
        }


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


def blocks(rows: int, n_out: int, like: Tensor) -> tuning.Blocks:
    """Configuration of `matmul` for `rows` pixels and `n_out` channels, dtype and device of `like`."""
    generation = devices.capability(like.device)
    return tuning.gather_blocks(rows, n_out, like.dtype, generation, devices.precision(like.dtype))


def matmul(
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
    constants = first.constants(0)
    constants |= last.constants(1) if len(operands) > 1 else {"GATHER1": (), "PASSES1": ()}
    current().gather_matmul[(row.capacity // blocks.m * (np_ // blocks.n), row.segments)](
        **first.steps(0), **last.steps(1), **constants, ints=row.ints, words=row.words, limits=row.limits,
        ratio=out if ratio is None else ratio, bias=out if bias is None else bias.contiguous(), out=out,
        entries=row.entries, capacity=row.capacity, P=0 if ratio is None else ratio.shape[1],
        copy_stride=first.storage.copy_stride, unscale=unscale,
        FIRST_Y=first.taps.y.first, FIRST_X=first.taps.x.first,
        WORDS0=first.taps.words, NOUT=n_out, NP=np_, RATIOS=0 if ratio is None else ratio.shape[0],
        PLAIN_PASS=len(first.taps.passes) - 1, HAS_BIAS=bias is not None,
        BM=blocks.m, BN=blocks.n, STAGES=blocks.stages, PRECISION=devices.precision(out.dtype),
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
