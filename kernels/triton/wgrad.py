"""The matrix kernel of the gradient of the weights: for each tap, x under it transposed times the gradient.

The sum over pixels is split over programs whose results land side by side and are added up, always in the
same order, by weights.finish. The merged pass (all taps of the largest window) takes the plain pixels, where
all ratios are one; at mixed pixels each branch takes the gradient scaled by its own ratio.
"""

import triton
import triton.language as tl

from .rows import WORD_BITS


@triton.jit
def tap_matmul(
    x, grads, ints, words, limits, partial, entries, capacity, copy_stride, tap_y, tap_x, splits,
    C: tl.constexpr, PITCH: tl.constexpr, CP: tl.constexpr, GRAD_PITCH: tl.constexpr,
    PASSES: tl.constexpr, SLOTS: tl.constexpr, NX: tl.constexpr, ROW_CHANNELS: tl.constexpr,
    SOURCE: tl.constexpr, WORDS: tl.constexpr, WORD0: tl.constexpr, SEGMENTS: tl.constexpr,
    SHARED: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partial [splits, segments of the sums, SLOTS, CP, GRAD_PITCH] float32.

    PASSES: (taps high, taps wide, oy, ox, first slot, copy of the gradient, kind of pixels: 0 plain, 1
    mixed, 2 both); a slot is one tap of C channels or, with ROW_CHANNELS, one row of taps of CP = columns x
    ROW_CHANNELS. A tile of BM takes BM / BC slots. SHARED: the segments have the same taps and are summed;
    else each has sums of its own.
    """
    TAPS: tl.constexpr = BM // BC
    NB: tl.constexpr = (GRAD_PITCH + BN - 1) // BN
    CB: tl.constexpr = (CP + BC - 1) // BC
    n = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    group = tl.program_id(0) // (NB * CB)
    if SHARED:
        split = tl.program_id(1)
        segment_lo = 0 * split
        segment_hi = segment_lo + SEGMENTS
        to_segment = split
    else:
        split = tl.program_id(1) // SEGMENTS
        segment_lo = tl.program_id(1) % SEGMENTS
        segment_hi = segment_lo + 1
        to_segment = tl.program_id(1)
    kh = 0 * group
    kw = 0 * group
    oy = 0 * group
    ox = 0 * group
    slot0 = 0 * group
    copy = 0 * group
    kind = 0 * group
    begin = 0 * group
    groups = 0
    for j in tl.static_range(len(PASSES)):
        mine = group >= groups
        kh = tl.where(mine, PASSES[j][0], kh)
        kw = tl.where(mine, PASSES[j][1], kw)
        oy = tl.where(mine, PASSES[j][2], oy)
        ox = tl.where(mine, PASSES[j][3], ox)
        slot0 = tl.where(mine, PASSES[j][4], slot0)
        copy = tl.where(mine, PASSES[j][5], copy)
        kind = tl.where(mine, PASSES[j][6], kind)
        begin = tl.where(mine, groups, begin)
        groups += (PASSES[j][0] * PASSES[j][1] + TAPS - 1) // TAPS
    m = tl.arange(0, BM)
    tap = (group - begin) * TAPS
    if TAPS > 1:
        tap = tap + m // BC
    c = tl.program_id(0) // NB % CB * BC + m % BC
    mine = (tap < kh * kw) & (c < CP)
    if ROW_CHANNELS > 0:
        jy = oy + tap  # kw is 1
        column = c // ROW_CHANNELS
        bit = jy * NX + column
        away = (jy * tap_y + column * tap_x) * PITCH + c % ROW_CHANNELS
        away = tl.max_contiguous(tl.multiple_of(away, ROW_CHANNELS), ROW_CHANNELS)
        read = mine & (column < NX)
    else:
        jy = oy + tap // kw
        jx = ox + tap % kw
        bit = jy * NX + jx
        away = (jy * tap_y + jx * tap_x) * PITCH + c
        read = mine & (c < C)
    x_columns = x + away[None, :]
    g_columns = grads + tl.cast(copy, tl.int64) * copy_stride + n[None, :]
    UNIFORM: tl.constexpr = TAPS == 1 and ROW_CHANNELS == 0  # one tap for the whole tile
    ALL_READ: tl.constexpr = UNIFORM and CP % BC == 0 and C == CP
    rows = tl.arange(0, BP)
    acc = tl.zeros([BM, BN], tl.float32)
    for segment in range(segment_lo, segment_hi):
        mixed_end = tl.load(limits + segment * 3)
        first_row = tl.where(kind == 0, mixed_end, 0)
        last_row = tl.where(kind == 1, mixed_end, tl.load(limits + segment * 3 + 1))
        blocks = (last_row - first_row) // BP
        each = (blocks + splits - 1) // splits
        lo = split * each
        hi = tl.minimum(lo + each, blocks)
        first_entry = tl.cast(segment, tl.int64) * capacity + first_row
        pixel_of = ints + first_entry
        corner_of = ints + tl.cast(entries, tl.int64) * (SOURCE + 1) + first_entry
        words_of = words + tl.cast(entries, tl.int64) * WORD0 + first_entry
        for i in tl.range(lo, hi, num_stages=STAGES):
            at = i * BP + rows
            pixel = tl.load(pixel_of + at)
            corner = tl.load(corner_of + at)
            if UNIFORM:
                bits = tl.load(words_of + at + tl.cast(bit // WORD_BITS, tl.int64) * entries)[:, None]
                bits = bits >> (bit % WORD_BITS)
            elif WORDS == 1:
                bits = tl.load(words_of + at)[:, None] >> tl.minimum(bit, WORD_BITS)[None, :]
            else:
                word = words_of + at[:, None] + (bit // WORD_BITS)[None, :].to(tl.int64) * entries
                bits = tl.load(word, mask=read[None, :], other=0) >> (bit % WORD_BITS)[None, :]
            valid = (bits & 1) != 0
            if not ALL_READ:
                valid = valid & read[None, :]
            if ROW_CHANNELS > 0:
                valid = tl.max_constancy(valid, [1, ROW_CHANNELS])
            a = tl.load(x_columns + corner[:, None].to(tl.int64) * PITCH, mask=valid, other=0.0)
            ok = (pixel >= 0)[:, None]
            if GRAD_PITCH % BN != 0:
                ok = ok & (n < GRAD_PITCH)[None, :]
            g = tl.load(g_columns + pixel[:, None].to(tl.int64) * GRAD_PITCH, mask=ok, other=0.0)
            acc = tl.dot(tl.trans(a), g, acc, input_precision=PRECISION)
    to = (to_segment * SLOTS + slot0 + tap).to(tl.int64) * CP + c
    if UNIFORM:
        to = to + 0 * m
    to = partial + to[:, None] * GRAD_PITCH + n[None, :]
    tl.store(to, acc, mask=mine[:, None] & (n < GRAD_PITCH)[None, :])
