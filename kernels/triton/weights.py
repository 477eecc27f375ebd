"""Weights: folded and laid out for the matrix kernels, and their gradients taken out of the partial sums.

Folding: V_b = scales_b * W_b, and the merged weights are the sum of all V_b around their common centre. The
layout is [slot, rows, columns] with the summed channels last (what tensor cores want in tf32), rows and
columns filled up with zeros to whole blocks. A slot is a tap or, for few channels, a row of taps
(ROW_CHANNELS > 0, see gather.py).
"""

import triton
import triton.language as tl

from .rows import pick


@triton.jit
def folded(
    weights, scales, w_out, w_in, window_y, window_x, ok, branch_lo, branch_hi, stride_out,
    NOUT: tl.constexpr, BRANCHES: tl.constexpr, HAS_SCALES: tl.constexpr,
):  # fmt: skip
    """Sum of the V_b of branches branch_lo to branch_hi at a tap of the common window, in float32.

    BRANCHES: (kh, kw, oy, ox, row of scales, offset in `weights`) of each branch; W_b lies [C_out, C_in, kh,
    kw] with `stride_out` input channels to an output channel.
    """
    value = tl.zeros(ok.shape, tl.float32)
    for b in tl.static_range(len(BRANCHES)):
        ty = window_y - BRANCHES[b][2]
        tx = window_x - BRANCHES[b][3]
        mine = (
            ok
            & (ty >= 0)
            & (ty < BRANCHES[b][0])
            & (tx >= 0)
            & (tx < BRANCHES[b][1])
            & (b >= branch_lo)
            & (b < branch_hi)
        )
        at = (w_out * stride_out + w_in).to(tl.int64) * (BRANCHES[b][0] * BRANCHES[b][1]) + (
            ty * BRANCHES[b][1] + tx
        )
        w = tl.load(weights + BRANCHES[b][5] + at, mask=mine, other=0.0).to(tl.float32)
        if HAS_SCALES:
            w *= tl.load(scales + BRANCHES[b][4] * NOUT + w_out, mask=w_out < NOUT, other=0.0).to(tl.float32)
        value += w
    return value


@triton.jit
def fold_bias(biases, scales, total, NOUT: tl.constexpr, N_BRANCHES: tl.constexpr, BLOCK: tl.constexpr):
    """total [NOUT] float32: sum over branches of scales * biases, both [N_BRANCHES, NOUT]."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.zeros([BLOCK], tl.float32)
    for b in tl.static_range(N_BRANCHES):
        bias = tl.load(biases + b * NOUT + n, mask=n < NOUT, other=0.0).to(tl.float32)
        value += bias * tl.load(scales + b * NOUT + n, mask=n < NOUT, other=0.0).to(tl.float32)
    tl.store(total + n, value, mask=n < NOUT)


@triton.jit
def pack_taps(
    weights, scales, packed, stride_out, slab_stride,
    NOUT: tl.constexpr, CIN: tl.constexpr, BRANCHES: tl.constexpr, PASSES: tl.constexpr, SLOTS: tl.constexpr,
    NP: tl.constexpr, KP: tl.constexpr, ADJOINT: tl.constexpr, HAS_SCALES: tl.constexpr,
    BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """packed [slabs, SLOTS, NP, KP]; rows are output channels, with ADJOINT input channels.

    PASSES: (kh, kw, oy, ox, first slot, branch_lo, branch_hi). Grid: rows, blocks of BK columns, slabs x
    passes.
    """
    row = tl.program_id(0)
    k = (tl.program_id(1) * BK + tl.arange(0, BK))[:, None]
    pass_ = tl.program_id(2) % len(PASSES)
    slab = tl.program_id(2) // len(PASSES)
    t = tl.arange(0, BT)[None, :]
    kh = 0 * pass_
    kw = 0 * pass_
    oy = 0 * pass_
    ox = 0 * pass_
    slot0 = 0 * pass_
    branch_lo = 0 * pass_
    branch_hi = 0 * pass_
    for j in tl.static_range(len(PASSES)):
        kh = tl.where(pass_ == j, PASSES[j][0], kh)
        kw = tl.where(pass_ == j, PASSES[j][1], kw)
        oy = tl.where(pass_ == j, PASSES[j][2], oy)
        ox = tl.where(pass_ == j, PASSES[j][3], ox)
        slot0 = tl.where(pass_ == j, PASSES[j][4], slot0)
        branch_lo = tl.where(pass_ == j, PASSES[j][5], branch_lo)
        branch_hi = tl.where(pass_ == j, PASSES[j][6], branch_hi)
    if ADJOINT:
        w_out = k
        w_in = row
        ok = (row < CIN) & (k < NOUT) & (t < kh * kw)
    else:
        w_out = row
        w_in = k
        ok = (row < NOUT) & (k < CIN) & (t < kh * kw)
    value = folded(
        weights + slab.to(tl.int64) * slab_stride, scales, w_out, w_in, t // kw + oy, t % kw + ox, ok,
        branch_lo, branch_hi, stride_out, NOUT, BRANCHES, HAS_SCALES,
    )  # fmt: skip
    to = ((slab * SLOTS + slot0 + t).to(tl.int64) * NP + row) * KP + k
    tl.store(packed + to, value.to(packed.dtype.element_ty), mask=(t < kh * kw) & (k < KP))


@triton.jit
def pack_rows(
    weights, scales, packed, stride_out, slab_stride,
    NOUT: tl.constexpr, CIN: tl.constexpr, BRANCHES: tl.constexpr, PASSES: tl.constexpr,
    FIRST_Y: tl.constexpr, FIRST_X: tl.constexpr, STEP_Y: tl.constexpr, STEP_X: tl.constexpr,
    NY: tl.constexpr, NX: tl.constexpr, ROW_CHANNELS: tl.constexpr, NP: tl.constexpr, KP: tl.constexpr,
    ADJOINT: tl.constexpr, HAS_SCALES: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """packed [segments, passes, NY, NP, KP] with KP = columns x ROW_CHANNELS.

    Segments are those of gather.accumulate (residues of the taps) or, where `slab_stride` is not 0, weights
    of their own. Grid: blocks of BR rows, segments x passes x NY.
    """
    row = (tl.program_id(0) * BR + tl.arange(0, BR))[:, None]
    slot = tl.program_id(1)
    jy = slot % NY
    pass_ = slot // NY % len(PASSES)
    segment = slot // (NY * len(PASSES))
    branch_lo = 0 * pass_
    branch_hi = 0 * pass_
    for j in tl.static_range(len(PASSES)):
        branch_lo = tl.where(pass_ == j, PASSES[j][5], branch_lo)
        branch_hi = tl.where(pass_ == j, PASSES[j][6], branch_hi)
    kk = tl.arange(0, KP)[None, :]
    jx = kk // ROW_CHANNELS
    channel = kk % ROW_CHANNELS
    window_y = pick(FIRST_Y, segment // len(FIRST_X)) + jy * STEP_Y
    window_x = pick(FIRST_X, segment % len(FIRST_X)) + jx * STEP_X
    if ADJOINT:
        w_out = channel
        w_in = row
        ok = (row < CIN) & (channel < NOUT) & (jx < NX)
    else:
        w_out = row
        w_in = channel
        ok = (row < NOUT) & (channel < CIN) & (jx < NX)
    value = folded(
        weights + segment.to(tl.int64) * slab_stride, scales, w_out, w_in, window_y, window_x, ok, branch_lo,
        branch_hi, stride_out, NOUT, BRANCHES, HAS_SCALES,
    )  # fmt: skip
    to = (slot.to(tl.int64) * NP + row) * KP + kk
    tl.store(packed + to, value.to(packed.dtype.element_ty), mask=(row < NP) & (kk < KP))


@triton.jit
def low_tap(d, segment, K: tl.constexpr, CUT_H: tl.constexpr, CUT_W: tl.constexpr):
    """Tap of the low-resolution map that tap `d` of a decoder stage's window reads in `segment`.

    Segments as in rows.upcat_windows. Returns tap and whether it lies in the image (beyond an odd size's
    last row it does not).
    """
    R: tl.constexpr = K // 2
    KM: tl.constexpr = (K + 1) // 2
    ty = segment // (2 + CUT_W)
    tx = segment % (2 + CUT_W)
    # the i-th cut row is CUT - i rows above the end: an even number (2h) below the first row outside
    py = tl.where(ty < 2, ty, (1 + CUT_H + ty) % 2)
    px = tl.where(tx < 2, tx, (1 + CUT_W + tx) % 2)
    dy = d // K - R
    dx = d % K - R
    inside = ((ty < 2) | (dy < CUT_H + 2 - ty)) & ((tx < 2) | (dx < CUT_W + 2 - tx))
    uy = ((py + dy + 2 * K) >> 1) - ((py - R + 2 * K) >> 1)
    ux = ((px + dx + 2 * K) >> 1) - ((px - R + 2 * K) >> 1)
    return uy * KM + ux, inside


@triton.jit
def fold_low(
    weight, folded_low, C_LOW, stride_out,
    K: tl.constexpr, CUT_H: tl.constexpr, CUT_W: tl.constexpr, ADJOINT: tl.constexpr,
    SLOTS: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Weights of a decoder stage for its low-resolution map, for each segment.

    Forward [segments, C_out, C_LOW, KM x KM]: what falls on one low pixel, summed. ADJOINT [segments, C_out,
    C_LOW, (K + 1) x (K + 1)]: for each output pixel around the two copies of a low row (of the last row, cut
    by an odd size, one copy), what it takes from them. Grid: C_out, blocks of BC, segments.
    """
    R: tl.constexpr = K // 2
    segment = tl.program_id(2)
    c = (tl.program_id(1) * BC + tl.arange(0, BC))[:, None]
    d = tl.arange(0, BT)[None, :]
    ok = (c < C_LOW) & (d < K * K)
    at = (tl.program_id(0).to(tl.int64) * stride_out + c) * (K * K) + d
    w = tl.load(weight + at, mask=ok, other=0.0).to(tl.float32)
    to = ((segment * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * C_LOW + c) * SLOTS
    if ADJOINT:
        copies_y = tl.where(segment // (1 + CUT_W) > 0, 1, 2)
        copies_x = tl.where(segment % (1 + CUT_W) > 0, 1, 2)
        dy = d // K
        dx = d % K
        for u in range(SLOTS):  # output row 2 y - R + uy reads row 2 y - 2 R + uy + dy: one of 2 y, 2 y + 1?
            sy = u // (K + 1) - 2 * R + dy
            sx = u % (K + 1) - 2 * R + dx
            hit = (sy >= 0) & (sy < copies_y) & (sx >= 0) & (sx < copies_x)
            total = tl.sum(tl.where(hit, w, 0.0), axis=1)[:, None]
            tl.store(folded_low + to + u, total.to(folded_low.dtype.element_ty), mask=c < C_LOW)
    else:
        tap, inside = low_tap(d, segment, K, CUT_H, CUT_W)
        for u in range(SLOTS):
            total = tl.sum(tl.where(inside & (tap == u), w, 0.0), axis=1)[:, None]
            tl.store(folded_low + to + u, total.to(folded_low.dtype.element_ty), mask=c < C_LOW)


@triton.jit
def finish(
    partial, weight, scales, grad, scale_grad, splits, stride_out, blocks_f, unscale,
    NOUT: tl.constexpr, CIN: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    OY: tl.constexpr, OX: tl.constexpr, WINDOW_W: tl.constexpr, OWN: tl.constexpr,
    SLOTS: tl.constexpr, CP: tl.constexpr, GRAD_PITCH: tl.constexpr, ROW_CHANNELS: tl.constexpr,
    SCALE_ROW: tl.constexpr, HAS_SCALES: tl.constexpr, LOW: tl.constexpr, SEGMENTS: tl.constexpr,
    CUT_H: tl.constexpr, CUT_W: tl.constexpr, BO: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Gradient of one branch [C_out, C_in, KH, KW]: unscale times the sum of `partial`.

    partial [splits, SEGMENTS, SLOTS, CP, GRAD_PITCH]: the merged weights' slots come first, the branch's own
    begin at slot OWN (-1: none). LOW: the slots are low-resolution taps, which differ by segment. With
    HAS_SCALES also the products <W, G> [blocks_f, C_out]. Grid: blocks of BF (input channel, tap) pairs,
    blocks of BO output channels.
    """
    f = tl.program_id(0) * BF + tl.arange(0, BF)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    c = f // (KH * KW)
    t = f % (KH * KW)
    ok = (f < CIN * KH * KW)[:, None] & (o < NOUT)[None, :]
    if ROW_CHANNELS > 0:
        column = (OX + t % KW) * ROW_CHANNELS + c
        merged = (OY + t // KW) * CP + column
        own = (OWN + t // KW) * CP + column
    else:
        merged = ((OY + t // KW) * WINDOW_W + OX + t % KW) * CP + c
        own = (OWN + t) * CP + c
    LOW_W: tl.constexpr = (KW + 1) // 2
    total = tl.zeros([BF, BO], tl.float32)
    for split in range(splits):
        for segment in range(SEGMENTS):
            first = tl.cast(split * SEGMENTS + segment, tl.int64) * (SLOTS * CP)
            if LOW:
                tap, inside = low_tap(t, segment, KH, CUT_H, CUT_W)
                if ROW_CHANNELS > 0:
                    slot = tap // LOW_W * CP + tap % LOW_W * ROW_CHANNELS
                else:
                    slot = tap * CP
                at = (first + slot + c)[:, None] * GRAD_PITCH + o[None, :]
                total += tl.load(partial + at, mask=ok & inside[:, None], other=0.0)
            else:
                at = (first + merged)[:, None] * GRAD_PITCH + o[None, :]
                total += tl.load(partial + at, mask=ok, other=0.0)
                if OWN >= 0:
                    at = (first + own)[:, None] * GRAD_PITCH + o[None, :]
                    total += tl.load(partial + at, mask=ok, other=0.0)
    total *= unscale
    at = o[None, :].to(tl.int64) * (stride_out * KH * KW) + f[:, None]
    if HAS_SCALES:
        w = tl.load(weight + at, mask=ok, other=0.0).to(tl.float32)
        products = scale_grad + (SCALE_ROW * blocks_f + tl.program_id(0)).to(tl.int64) * NOUT + o
        tl.store(products, tl.sum(w * total, axis=0), mask=o < NOUT)
        total *= tl.load(scales + SCALE_ROW * NOUT + o, mask=o < NOUT, other=0.0).to(tl.float32)[None, :]
    tl.store(grad + at, total.to(grad.dtype.element_ty), mask=ok)
