"""The matrix kernel of forward and of the gradient of the features: rows of taps times folded weights.

One program computes BM pixels of a row list (see rows.py) times BN channels. Each K step gathers one tap of
BK channels for all its pixels, straight from where the features are stored; a bit of the pixel's window says
whether to read at all, so neither a masked copy nor a bounds check exists. All kernel sizes share one
accumulator: the pass over kernel b ends by scaling the rows with r_b / r_(b+1), as the identity
``r3 c3 + r5 c5 + r7 c7 = r7 (r5/r7 (r3/r5 c3 + c5) + c7)`` allows.
"""

import triton
import triton.language as tl

from .rows import WORD_BITS, pick


@triton.jit
def tap_range(first, STEP: tl.constexpr, o, k):
    """Indices j with o <= first + j * STEP < o + k: the first of them, and their number."""
    lo = (o - first + STEP - 1) // STEP
    hi = (o + k - 1 - first + STEP) // STEP
    lo = tl.maximum(lo, 0)
    return lo, tl.maximum(hi - lo, 0)


@triton.jit
def accumulate(
    acc, x, weights, words, corner, entry, entries, segment, first_n, lo, hi, copy_stride, tap_y, tap_x,
    ratio, pixel, P,
    C: tl.constexpr, PITCH: tl.constexpr, BK: tl.constexpr, KP: tl.constexpr, NP: tl.constexpr,
    PHASES: tl.constexpr, FIRST_Y: tl.constexpr, FIRST_X: tl.constexpr,
    STEP_Y: tl.constexpr, STEP_X: tl.constexpr, SEGMENTS_X: tl.constexpr, NX: tl.constexpr,
    SLAB: tl.constexpr, ROW_CHANNELS: tl.constexpr, RATIOS: tl.constexpr, WORDS: tl.constexpr,
    BN: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc += gathered x @ weights over the phases lo to hi; constants as in plan.Source.

    ROW_CHANNELS = 0: a K step is one tap, BK of C channels. Else, for few channels: all taps of a row of the
    window at once, BK = columns x ROW_CHANNELS.
    """
    kk = tl.arange(0, BK)
    b_rows = weights + (first_n + tl.arange(0, BN))[None, :].to(tl.int64) * KP + kk[:, None]
    a_rows = x + corner[:, None].to(tl.int64) * PITCH
    first_y = pick(FIRST_Y, segment // SEGMENTS_X)
    first_x = pick(FIRST_X, segment % SEGMENTS_X)
    for phase in range(lo, hi):
        kh = 0 * phase
        kw = 0 * phase
        oy = 0 * phase
        ox = 0 * phase
        w0 = 0 * phase
        word_set = 0 * phase
        for j in tl.static_range(len(PHASES)):
            kh = tl.where(phase == j, PHASES[j][0], kh)
            kw = tl.where(phase == j, PHASES[j][1], kw)
            oy = tl.where(phase == j, PHASES[j][2], oy)
            ox = tl.where(phase == j, PHASES[j][3], ox)
            w0 = tl.where(phase == j, PHASES[j][4], w0)
            word_set = tl.where(phase == j, PHASES[j][5], word_set)
        jy0, ny = tap_range(first_y, STEP_Y, oy, kh)
        a_phase = a_rows + tl.cast(phase, tl.int64) * copy_stride
        w_words = words + tl.cast(word_set * WORDS, tl.int64) * entries + entry
        bits = tl.load(w_words)[:, None]
        if ROW_CHANNELS > 0:
            column = kk // ROW_CHANNELS
            in_row = ((column < NX) & (kk % ROW_CHANNELS < C))[None, :]
            a_ptrs = a_phase + (column * tap_x + kk % ROW_CHANNELS)[None, :]
            for i in tl.range(0, ny, num_stages=STAGES):
                bit = ((jy0 + i) * NX + column)[None, :]
                if WORDS > 1:
                    word = w_words[:, None] + tl.cast(bit // WORD_BITS, tl.int64) * entries
                    read = (tl.load(word, mask=in_row, other=0) >> (bit % WORD_BITS)) & 1
                else:
                    read = (bits >> bit) & 1
                a = tl.load(a_ptrs + (jy0 + i) * tap_y, mask=(read != 0) & in_row, other=0.0)
                b = tl.load(b_rows + tl.cast(w0 + segment * SLAB + jy0 + i, tl.int64) * (NP * KP))
                acc = tl.dot(a, b, acc, input_precision=PRECISION)
        else:
            KB: tl.constexpr = KP // BK
            jx0, nx = tap_range(first_x, STEP_X, ox, kw)
            w_first = w0 + segment * SLAB + (first_y + jy0 * STEP_Y - oy) * kw + first_x + jx0 * STEP_X - ox
            a_ptrs = a_phase + kk[None, :]
            nx1 = tl.maximum(nx, 1)
            for i in tl.range(0, ny * nx * KB, num_stages=STAGES):
                tap = i // KB
                k0 = (i % KB) * BK
                jy = tap // nx1
                jx = tap % nx1
                bit = (jy0 + jy) * NX + jx0 + jx
                if WORDS > 1:
                    word = tl.load(w_words + tl.cast(bit // WORD_BITS, tl.int64) * entries)[:, None]
                    read = ((word >> (bit % WORD_BITS)) & 1) != 0
                else:
                    read = ((bits >> bit) & 1) != 0
                if C % BK != 0:
                    read = read & (k0 + kk < C)[None, :]
                a = tl.load(a_ptrs + ((jy0 + jy) * tap_y + (jx0 + jx) * tap_x + k0), mask=read, other=0.0)
                w_tap = w_first + jy * (STEP_Y * kw) + jx * STEP_X
                b = tl.load(b_rows + (tl.cast(w_tap, tl.int64) * (NP * KP) + k0))
                acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if RATIOS > 0:
            this = tl.minimum(phase, RATIOS - 1)
            after = tl.minimum(phase + 1, RATIOS - 1)
            row = pixel >= 0
            scale = tl.load(ratio + tl.cast(this, tl.int64) * P + pixel, mask=row, other=0.0)
            below = tl.load(ratio + tl.cast(after, tl.int64) * P + pixel, mask=row, other=1.0)
            acc *= tl.where(this == after, scale, scale / below)[:, None]
    return acc


@triton.jit
def gather_matmul(
    x0, x1, weights0, weights1, ints, words, limits, ratio, bias, scales, out,
    entries, capacity, P, copy_stride, tap_y0, tap_x0, tap_y1, tap_x1,
    SOURCE0: tl.constexpr, SOURCE1: tl.constexpr, WORDS0: tl.constexpr,
    NOUT: tl.constexpr, NP: tl.constexpr, RATIOS: tl.constexpr, PLAIN_PHASE: tl.constexpr,
    MIXED_PHASES: tl.constexpr, BIASES: tl.constexpr, HAS_SCALES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[pixel, :NOUT] = ratio * (sum over sources and taps) + bias; 0 for dead pixels.

    SOURCE0, SOURCE1: the constants of `accumulate` from C on, up to WORDS; SOURCE1 = () if there is one
    source. BIASES: row of `bias` and `scales` for each branch.
    """
    segment = tl.program_id(1)
    n_blocks: tl.constexpr = NP // BN
    first_n = tl.program_id(0) % n_blocks * BN
    start = tl.program_id(0) // n_blocks * BM
    mixed_end = tl.load(limits + segment * 3)
    live_end = tl.load(limits + segment * 3 + 1)
    if start >= tl.load(limits + segment * 3 + 2):
        return
    entry = segment.to(tl.int64) * capacity + start + tl.arange(0, BM)
    pixel = tl.load(ints + entry)
    mixed = start < mixed_end
    live = start < live_end
    lo = tl.where(mixed, 0, PLAIN_PHASE)
    hi = tl.where(mixed, MIXED_PHASES, tl.where(live, PLAIN_PHASE + 1, PLAIN_PHASE))
    S0: tl.constexpr = SOURCE0
    acc = tl.zeros([BM, BN], tl.float32)
    acc = accumulate(
        acc, x0, weights0, words, tl.load(ints + entries + entry), entry, entries, segment, first_n, lo, hi,
        copy_stride, tap_y0, tap_x0, ratio, pixel, P,
        S0[0], S0[1], S0[2], S0[3], NP, S0[4], S0[5], S0[6], S0[7], S0[8], S0[9], S0[10], S0[11], S0[12],
        RATIOS if len(SOURCE1) == 0 else 0, S0[13], BN, STAGES, PRECISION,
    )  # fmt: skip
    if len(SOURCE1) > 0:
        S1: tl.constexpr = SOURCE1
        acc = accumulate(
            acc, x1, weights1, words + WORDS0 * entries, tl.load(ints + 2 * entries + entry), entry, entries,
            segment, first_n, lo, hi, copy_stride, tap_y1, tap_x1, ratio, pixel, P,
            S1[0], S1[1], S1[2], S1[3], NP, S1[4], S1[5], S1[6], S1[7], S1[8], S1[9], S1[10], S1[11], S1[12],
            RATIOS, S1[13], BN, STAGES, PRECISION,
        )  # fmt: skip
    n = first_n + tl.arange(0, BN)
    if len(BIASES) > 0 and live:
        beta = tl.zeros([BN], tl.float32)
        for b in tl.static_range(len(BIASES)):
            value = tl.load(bias + BIASES[b] * NOUT + n, mask=n < NOUT, other=0.0).to(tl.float32)
            if HAS_SCALES:
                value *= tl.load(scales + BIASES[b] * NOUT + n, mask=n < NOUT, other=0.0).to(tl.float32)
            beta += value
        acc += beta[None, :]
    rows = out + pixel[:, None].to(tl.int64) * NOUT + n[None, :]
    tl.store(rows, acc.to(out.dtype.element_ty), mask=(pixel >= 0)[:, None] & (n < NOUT)[None, :])
