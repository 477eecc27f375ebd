"""Launch of triton/wgrad.py: the matrix kernel of the gradient of the weights."""

from __future__ import annotations

import torch

from .. import tuning
from . import devices
from .gather import Storage
from .gradients import ScaledGradient
from .kernel_set import current
from .rows import RowList
from .sizes import power_of_two, row_channels, row_depth
from .taps import Branch, Taps
from .weights import Partial

MAX_BLOCK_DEPTH = 64  # of tuning.wgrad_blocks: row lists for `partials` are filled up to it


def partials(
    row: RowList,
    storage: Storage,
    number: int,
    word0: int,
    grad: ScaledGradient,
    taps: Taps,
    branches: tuple[Branch, ...],
    *,
    shared: bool,
) -> Partial:
    """x under every tap, transposed, times the gradient.

    `storage` is of source `number` of the row list, whose windows' bits begin at word `word0`. `shared`: taps
    are the same in all segments, else sums are kept apart.
    """
    cp = row_depth(storage.channels, taps.x.taps, storage.data.element_size())
    few = row_channels(storage.channels) if cp else 0
    cp = cp or storage.channels
    pixels = grad.copies.shape[1]
    generation = devices.capability(grad.copies.device)
    blocks = tuning.wgrad_blocks(taps.words, len(grad.sums), grad.copies.dtype, generation)
    block_c = min(max(power_of_two(cp), 16), blocks.m)
    per_tile = blocks.m // block_c
    passes: list[tuple[int, ...]] = []
    slots = groups = 0
    last = len(branches) - 1
    kinds = [(last, 2)] if last == 0 else [(last, 0), *((b, 1) for b in range(len(branches)))]
    for b, kind in kinds:  # the merged pass first
        high, wide = branches[b].kh, 1 if few else branches[b].kw
        passes.append((high, wide, branches[b].oy, 0 if few else branches[b].ox, slots, b, kind))
        slots += high * wide
        groups += -(-high * wide // per_tile)
    own = tuple(one[4] for one in passes[1:]) or (-1,)
    tiles = groups * -(-cp // block_c) * -(-grad.pitch // blocks.n)
    segments = 1 if shared else row.segments
    splits = max(1, min(2 * 132 * 2 // max(tiles * segments, 1), pixels // (blocks.k * 8), 64))
    data = torch.empty(
        (splits, segments, slots, cp, grad.pitch), dtype=torch.float32, device=storage.data.device
    )
    current().tap_matmul[(tiles, splits * segments)](
        x=storage.data, grads=grad.copies, ints=row.ints, words=row.words, limits=row.limits, partial=data,
        entries=row.entries, capacity=row.capacity, copy_stride=pixels * grad.pitch,
        tap_y=taps.y.jump * storage.width, tap_x=taps.x.jump, splits=splits,
        C=storage.channels, PITCH=storage.pitch, CP=cp, GRAD_PITCH=grad.pitch, PASSES=tuple(passes),
        SLOTS=slots, NX=taps.x.taps, ROW_CHANNELS=few, SOURCE=number, WORDS=taps.words, WORD0=word0,
        SEGMENTS=row.segments, SHARED=shared, BC=block_c, BM=blocks.m, BN=blocks.n, BP=blocks.k,
        STAGES=blocks.stages, PRECISION=devices.precision(grad.copies.dtype),
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return Partial(data, own, few, grad.unscale)
