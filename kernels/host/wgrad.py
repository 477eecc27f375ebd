"""Launch of triton/wgrad.py: the matrix kernel of the gradient of the weights."""

from __future__ import annotations

from functools import lru_cache

import torch

from .. import tuning
from . import devices, gather
from .gradients import ScaledGradient
from .kernel_set import current
from .problem import Problem, Source
from .rows import RowList
from .sizes import power_of_two, row_channels, row_depth
from .taps import Branch
from .weights import Partial

MAX_BLOCK_DEPTH = 64  # of tuning.wgrad_blocks: row lists for `partials` are filled up to it


def partials(p: Problem, source: Source, row: RowList, grad: ScaledGradient) -> Partial:
    """x under every tap, transposed, times the gradient; of an up-sampled source by segment of `row`."""
    storage, taps = gather.storage_of(source.x), source.taps
    cp = row_depth(storage.channels, taps.x.taps, storage.data.element_size())
    few = row_channels(storage.channels) if cp else 0
    cp = cp or storage.channels
    pixels = grad.copies.shape[1]
    generation = devices.capability(grad.copies.device)
    blocks = tuning.wgrad_blocks(taps.words, len(grad.sums), grad.copies.dtype, generation)
    block_c = min(max(power_of_two(cp), 16), blocks.m)
    passes, own, slots, groups = _passes(source.branches, blocks.m // block_c, rows_of_taps=few > 0)
    tiles = groups * -(-cp // block_c) * -(-grad.pitch // blocks.n)
    segments = row.segments if source.up else 1
    splits = max(1, min(2 * 132 * 2 // max(tiles * segments, 1), pixels // (blocks.k * 8), 64))
    data = torch.empty(
        splits, segments, slots, cp, grad.pitch, dtype=torch.float32, device=storage.data.device
    )
    current().tap_matmul[(tiles, splits * segments)](
        x=storage.data, grads=grad.copies, ints=row.ints, words=row.words, limits=row.limits, partial=data,
        entries=row.entries, capacity=row.capacity, copy_stride=pixels * grad.pitch,
        tap_y=taps.y.jump * storage.width, tap_x=taps.x.jump, splits=splits,
        C=storage.channels, PITCH=storage.pitch, CP=cp, GRAD_PITCH=grad.pitch, PASSES=passes,
        SLOTS=slots, NX=taps.x.taps, ROW_CHANNELS=few, SOURCE=source.number, WORDS=taps.words,
        WORD0=source.word0, SEGMENTS=row.segments, SHARED=not source.up, BC=block_c, BM=blocks.m, BN=blocks.n,
        BP=blocks.k, STAGES=blocks.stages, PRECISION=p.precision,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return Partial(data, own, few, grad.unscale)


@lru_cache(maxsize=1024)
def _passes(
    branches: tuple[Branch, ...], per_tile: int, *, rows_of_taps: bool
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...], int, int]:
    """PASSES, the merged one first; first slot of each branch's own, (-1,) for none; slots; groups of them.

    A slot is a tap, or a row of taps; a tile has `per_tile` of them.
    """
    passes: list[tuple[int, ...]] = []
    slots = groups = 0
    last = len(branches) - 1
    kinds = [(last, 2)] if last == 0 else [(last, 0), *((b, 1) for b in range(len(branches)))]
    for b, kind in kinds:
        one = branches[b]
        high, wide = one.kh, 1 if rows_of_taps else one.kw
        passes.append((high, wide, one.oy, 0 if rows_of_taps else one.ox, slots, b, kind))
        slots += high * wide
        groups += -(-high * wide // per_tile)
    return tuple(passes), tuple(one[4] for one in passes[1:]) or (-1,), slots, groups
