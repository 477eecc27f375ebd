"""Launches of the kernels: buffers, grids and constants. Nothing here waits for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pconv_ext._geometry import memory_format

from . import gather, gradients, rows, tuning, weights, wgrad
from .plan import Branch, Phase, Taps, rounded, row_channels, row_depth

MAX_BLOCK_DEPTH = 64  # of tuning.wgrad_blocks: row lists for wgrad.tap_matmul are filled up to it


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


class Source(NamedTuple):
    """A tensor to gather from: channels-last storage of pixels, `pitch` elements from one to the next."""

    data: Tensor
    channels: int
    pitch: int
    width: int  # pixels of a row
    sign: int  # +1 forward, -1 where taps lead backwards
    copy_stride: int = 0  # from one phase's tensor to the next


def on(device: torch.device) -> Any:
    """Context in which kernels are launched on `device`."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def capability(device: torch.device) -> int:
    """GPU generation for tuning.py; the interpreter takes Hopper's configurations."""
    if device.type != "cuda":
        return 90
    return 90 if torch.cuda.get_device_capability(device)[0] >= 9 else 80


def empty_features(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised features [N, C, H, W] in channels-last storage, in dtype and on the device of `like`.

    Where storage is the same in both layouts, strides are those of the layout of `like`: the layout of all
    that follows depends on them.
    """
    ambiguous = shape[1] == 1 or shape[2] * shape[3] == 1
    layout = memory_format(like) if ambiguous else torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def precision(dtype: torch.dtype) -> str:
    """Of float32 products: what the user chose for cuDNN's convolutions."""
    chosen = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "ieee" if dtype == torch.float32 and chosen != "tf32" else "tf32"


def gather_blocks(rows: int, n_out: int, like: Tensor) -> tuning.Blocks:
    """Configuration of `matmul` for `rows` pixels and `n_out` channels, dtype and device of `like`."""
    return tuning.gather_blocks(rows, n_out, like.dtype, capability(like.device), precision(like.dtype))


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
            f"backend 'triton' cannot index {pixels} pixels in each of {segments} classes of "
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
    rows.compact[(n_blocks, segments)](
        *entries[:4], result.ints, result.words, result.limits, q, n_blocks, capacity,
        INTS=ints, WORDS=words, PAD=pad, BLOCK=block,
    )  # fmt: skip
    return result


def fold_bias(biases: list[Tensor], scales: Tensor) -> Tensor | None:
    """Sum of scales * biases [C_out] in float32, both in the order of the branches; None without biases."""
    if not biases:
        return None
    n_out = scales.shape[1]
    total = torch.empty(n_out, dtype=torch.float32, device=scales.device)
    weights.fold_bias[(-(-n_out // 256),)](
        torch.stack(biases), scales, total, NOUT=n_out, BRANCHES=len(biases), BLOCK=256
    )
    return total


class Packed(NamedTuple):
    """Weights laid out for gather.gather_matmul, with the constants that go with them."""

    data: Tensor
    bk: int
    kp: int
    row_channels: int


def pack(
    weight: Tensor,
    scales: Tensor | None,
    parts: tuple[Branch, ...],
    taps: Taps,
    c_out: int,
    c_in: int,
    stride_out: int,
    slabs: int,
    block_n: int,
    *,
    adjoint: bool,
) -> Packed:
    """Fold and lay out. `weight` is flat, `slabs` weights of [C_out, stride_out, taps] one after the other.

    The summed channels are c_in or, with `adjoint`, c_out.
    """
    summed, kept = (c_out, c_in) if adjoint else (c_in, c_out)
    np_ = rounded(kept, block_n)
    kp = row_depth(summed, taps.x.taps, weight.element_size())
    scales_arg = weight if scales is None else scales
    common = {"NOUT": c_out, "CIN": c_in, "KERNELS": tuple(map(tuple, parts)), "PHASES": _tuples(taps.phases)}
    slab_stride = weight.numel() // slabs if slabs > 1 else 0
    if kp:
        few = row_channels(summed)
        segments = max(slabs, len(taps.y.first) * len(taps.x.first))
        slots = segments * len(taps.phases) * taps.y.taps
        data = weight.new_empty(slots * np_ * kp)
        weights.pack_rows[(-(-np_ // 16), slots)](
            weight, scales_arg, data, stride_out, slab_stride, **common,
            FIRST_Y=taps.y.first, FIRST_X=taps.x.first, STEP_Y=taps.y.step, STEP_X=taps.x.step,
            NY=taps.y.taps, NX=taps.x.taps, ROW_CHANNELS=few, NP=np_, KP=kp,
            ADJOINT=adjoint, HAS_SCALES=scales is not None, BR=16,
        )  # fmt: skip
        return Packed(data, kp, kp, few)
    bk = tuning.channel_blocks(summed, weight.dtype)
    kp = rounded(summed, bk)
    data = weight.new_empty(slabs * taps.slots * np_ * kp)
    block_t = tuning.power_of_two(max(phase.kh * phase.kw for phase in taps.phases))
    block_k = max(16, min(bk, 2048 // block_t))
    weights.pack_taps[(np_, -(-kp // block_k), slabs * len(taps.phases))](
        weight, scales_arg, data, stride_out, slab_stride, **common, SLOTS=taps.slots, NP=np_, KP=kp,
        ADJOINT=adjoint, HAS_SCALES=scales is not None, BT=block_t, BK=block_k, num_warps=8,
    )  # fmt: skip
    return Packed(data, bk, kp, 0)


def _tuples(phases: tuple[Phase, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, phases))


def source_constants(
    source: Source, taps: Taps, packed: Packed
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """SOURCE and PHASES of gather.accumulate."""
    phases = _tuples(taps.phases)
    slab = taps.slab
    if packed.row_channels:  # a slot is a row of taps
        per_phase = taps.y.taps
        phases = tuple((*p[:4], i * per_phase, *p[5:]) for i, p in enumerate(phases))
        shared = taps.slab == 0 and len(taps.y.first) * len(taps.x.first) == 1
        slab = 0 if shared else per_phase * len(phases)
    constants = (
        source.channels, source.pitch, packed.bk, packed.kp, taps.y.step, taps.x.step, taps.x.taps, slab,
        packed.row_channels, taps.words,
    )  # fmt: skip
    return constants, phases


def matmul(
    row: RowList,
    sources: list[tuple[Source, Taps, Packed]],
    out: Tensor,
    n_out: int,
    blocks: tuning.Blocks,
    *,
    plain_phase: int,
    mixed_phases: int,
    ratio: Tensor | None = None,
    pixels: int = 0,
    bias: Tensor | None = None,
    unscale: float = 1.0,
) -> None:
    """out [pixels, n_out] (channels-last storage) of the gathered taps times the packed weights."""
    np_ = rounded(n_out, blocks.n)
    grid = (row.capacity // blocks.m * (np_ // blocks.n), row.segments)
    steps = [
        (source.sign * taps.y.jump * source.width, source.sign * taps.x.jump) for source, taps, _ in sources
    ]
    first, second = sources[0], sources[-1]
    source0, phases0 = source_constants(*first)
    source1, phases1 = source_constants(*second) if len(sources) > 1 else ((), ())
    gather.gather_matmul[grid](
        first[0].data, second[0].data, first[2].data, second[2].data, row.ints, row.words, row.limits,
        out if ratio is None else ratio, out if bias is None else bias.contiguous(), out,
        row.entries, row.capacity, pixels, first[0].copy_stride, unscale, *steps[0], *steps[-1],
        SOURCE0=source0, PHASES0=phases0, SOURCE1=source1, PHASES1=phases1,
        FIRST_Y=first[1].y.first, FIRST_X=first[1].x.first,
        WORDS0=first[1].words, NOUT=n_out, NP=np_, RATIOS=0 if ratio is None else ratio.shape[0],
        PLAIN_PHASE=plain_phase, MIXED_PHASES=mixed_phases, HAS_BIAS=bias is not None,
        BM=blocks.m, BN=blocks.n, STAGES=blocks.stages, PRECISION=precision(out.dtype),
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


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
    block_c = min(tuning.power_of_two(pitch), 64)
    block_p = 2048 // block_c
    rounds = max(1, min(16, pixels // (block_p * 1024)))
    n_blocks = -(-pixels // (block_p * rounds))
    unscale = float(tuning.power_of_two(largest)) if grad_out.dtype == torch.float16 else 1.0
    sums = torch.empty((n_blocks, n_out), dtype=torch.float32, device=grad_out.device)
    gradients.scale_gradient[(n_blocks, -(-pitch // block_c))](
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
    c_out: int,
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
    blocks = tuning.wgrad_blocks(taps.words, c_out, grad.copies.dtype, capability(grad.copies.device))
    block_c = min(max(tuning.power_of_two(cp), 16), blocks.m)
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
    wgrad.tap_matmul[(tiles, splits * segments)](
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
    weights.finish[(blocks_f, -(-c_out // 32))](
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
