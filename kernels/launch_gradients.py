"""Launches of the backward kernels: the scaled gradient, and the gradient of the weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import launch, tuning
from .kernel_set import current
from .launch import Source, precision
from .lists import RowList, Windows
from .plan import Branch, Taps, power_of_two, rounded, row_channels, row_depth

MAX_BLOCK_DEPTH = 64  # of tuning.wgrad_blocks: row lists for wgrad.tap_matmul are filled up to it


class ScaledGradient(NamedTuple):
    """The incoming gradient times the ratio of each branch, and its sum over live pixels."""

    copies: Tensor  # [branches, P, pitch], see gradients.scale_gradient
    pitch: int
    unscale: float  # what to multiply results with
    sums: Tensor  # [C_out] float32


def scale_gradient(
    grad_out: Tensor, windows: Windows, largest: int, *, for_features: bool, for_weights: bool
) -> ScaledGradient:
    """See gradients.scale_gradient. `grad_out` [N, C_out, H, W] in any layout; `largest` possible ratio.

    In float16 the copies are made smaller by a power of two, so that no ratio makes them overflow.
    """
    n_out = grad_out.shape[1]
    grad_out = grad_out.contiguous(memory_format=torch.channels_last)
    ratios, pixels = windows.ratio.shape
    copies = for_features or for_weights
    pitch = row_channels(n_out) or rounded(n_out, 8)
    scaled = grad_out.new_empty((ratios if copies else 0, pixels, pitch))
    block_c = min(power_of_two(pitch), 64)
    block_p = 2048 // block_c
    rounds = max(1, min(16, pixels // (block_p * 1024)))
    n_blocks = -(-pixels // (block_p * rounds))
    unscale = float(power_of_two(largest)) if grad_out.dtype == torch.float16 else 1.0
    sums = torch.empty((n_blocks, n_out), dtype=torch.float32, device=grad_out.device)
    current().scale_gradient[(n_blocks, -(-pitch // block_c))](
        grad_out, windows.ratio, windows.state, scaled, sums, pixels, pixels * pitch, rounds, 1 / unscale,
        NOUT=n_out, PITCH=pitch, RATIOS=ratios, COPIES=copies, ALL=for_features, BP=block_p, BC=block_c,
    )  # fmt: skip
    return ScaledGradient(scaled, pitch, unscale, sums.sum(0))


class Partial(NamedTuple):
    """Partial sums of the gradient of the weights, and how they are laid out."""

    data: Tensor  # [parts, segments, slots, cp, pitch] float32
    parts: int
    slots: int
    cp: int
    own: tuple[int, ...]  # first slot of each branch at mixed pixels, -1 for none
    row_channels: int
    unscale: float


def weight_partials(
    row: RowList,
    source: Source,
    index: int,
    word0: int,
    grad: ScaledGradient,
    taps: Taps,
    parts: tuple[Branch, ...],
    *,
    shared: bool,
) -> Partial:
    """x under every tap, transposed, times the gradient; `source` is the row list's `index`-th.

    `shared`: taps are the same in all segments, else sums are kept apart.
    """
    cp = row_depth(source.channels, taps.x.taps, source.data.element_size())
    few = row_channels(source.channels) if cp else 0
    cp = cp or source.channels
    pixels = grad.copies.shape[1]
    blocks = tuning.wgrad_blocks(
        taps.words, len(grad.sums), grad.copies.dtype, launch.capability(grad.copies.device)
    )
    block_c = min(max(power_of_two(cp), 16), blocks.m)
    per_tile = blocks.m // block_c
    phases: list[tuple[int, ...]] = []
    slots = groups = 0
    last = len(parts) - 1
    kinds = [(last, 2)] if last == 0 else [(last, 0), *((b, 1) for b in range(len(parts)))]
    for b, kind in kinds:  # the merged kernel first
        high, wide = parts[b].kh, 1 if few else parts[b].kw
        phases.append((high, wide, parts[b].oy, 0 if few else parts[b].ox, slots, b, kind))
        slots += high * wide
        groups += -(-high * wide // per_tile)
    own = tuple(phase[4] for phase in phases[1:]) or (-1,)
    tiles = groups * -(-cp // block_c) * -(-grad.pitch // blocks.n)
    segments = 1 if shared else row.segments
    splits = max(1, min(2 * 132 * 2 // max(tiles * segments, 1), pixels // (blocks.k * 8), 64))
    data = torch.empty(
        (splits, segments, slots, cp, grad.pitch), dtype=torch.float32, device=source.data.device
    )
    current().tap_matmul[(tiles, splits * segments)](
        source.data, grad.copies, row.ints, row.words, row.limits, data, row.entries, row.capacity,
        pixels * grad.pitch, taps.y.jump * source.width, taps.x.jump, splits,
        C=source.channels, PITCH=source.pitch, CP=cp, GRAD_PITCH=grad.pitch, PHASES=tuple(phases),
        SLOTS=slots, NX=taps.x.taps, ROW_CHANNELS=few, SOURCE=index, WORDS=taps.words, WORD0=word0,
        SEGMENTS=row.segments, SHARED=shared, BC=block_c, BM=blocks.m, BN=blocks.n, BP=blocks.k,
        STAGES=blocks.stages, PRECISION=precision(grad.copies.dtype),
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return Partial(data, splits, slots, cp, own, few, grad.unscale)


def finish(
    partial: Partial,
    b: int,
    part: Branch,
    window_w: int,
    weight: Tensor,
    grad: Tensor,
    c_in: int,
    stride_out: int,
    scales: Tensor | None = None,
    products: Tensor | None = None,
    *,
    low: bool = False,
    cut: tuple[int, int] = (0, 0),
) -> None:
    """Add up the partial sums of branch `b` into `grad`, [C_out, stride_out, kh, kw] from its first element.

    `products` [branches, finish_blocks, C_out] takes <W, G> for the gradient of the scales.
    """
    _, segments, _, _, pitch = partial.data.shape
    c_out = grad.shape[0]
    blocks_f = finish_blocks(c_in, part)
    current().finish[(blocks_f, -(-c_out // 32))](
        partial.data, weight, weight if scales is None else scales,
        grad, grad if products is None else products,
        partial.parts, stride_out, blocks_f if products is None else products.shape[1], partial.unscale,
        NOUT=c_out, CIN=c_in, KH=part.kh, KW=part.kw, OY=part.oy, OX=part.ox, WINDOW_W=window_w,
        OWN=partial.own[b], SLOTS=partial.slots, CP=partial.cp, GRAD_PITCH=pitch,
        ROW_CHANNELS=partial.row_channels, SCALE_ROW=part.row, HAS_SCALES=scales is not None, LOW=low,
        SEGMENTS=segments, CUT_H=cut[0], CUT_W=cut[1], BO=32, BF=64, num_warps=8,
    )  # fmt: skip


def finish_blocks(c_in: int, part: Branch) -> int:
    """Programs of `finish` along input channels and taps."""
    return -(-c_in * part.kh * part.kw // 64)
