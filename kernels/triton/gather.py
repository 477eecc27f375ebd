"""The matrix kernel of forward and of the gradient of the features: rows of taps times folded weights.

One program computes BM pixels of a row list (see rows.py) times BN channels. Each K step gathers one tap of
BK channels for all its pixels from channels-last features; a bit of the pixel's window says whether to read
at all, so neither a masked copy nor a bounds check exists. All branches share one accumulator: forward, the
pass over branch b ends by scaling the rows with r_b / r_(b+1), as the identity ``r3 c3 + r5 c5 + r7 c7 = r7
(r5/r7 (r3/r5 c3 + c5) + c7)`` allows; backward, each pass reads a copy of the gradient scaled beforehand.
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
    acc, x, weights, words, corners, pixels, entries, segment, first_n, lo, hi, copy_stride, tap_y, tap_x,
    ratio, P,
    GATHER: tl.constexpr, PASSES: tl.constexpr, FIRST_Y: tl.constexpr, FIRST_X: tl.constexpr,
    NP: tl.constexpr, RATIOS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc += gathered x @ weights over the passes lo to hi. GATHER: constants, see host/gather.py.

    ROW_CHANNELS = 0: a K step is one tap, BK of C channels. Else, for few channels: all taps of a row of the
    window at once, BK = columns x ROW_CHANNELS, where PITCH = ROW_CHANNELS and channels beyond C are zero.
    tap_y, tap_x: pixels from one tap to the next.
    """
    C: tl.constexpr = GATHER[0]
    PITCH: tl.constexpr = GATHER[1]
    BK: tl.constexpr = GATHER[2]
    KP: tl.constexpr = GATHER[3]
    STEP_Y: tl.constexpr = GATHER[4]
    STEP_X: tl.constexpr = GATHER[5]
    NX: tl.constexpr = GATHER[6]
    SLAB: tl.constexpr = GATHER[7]
    ROW_CHANNELS: tl.constexpr = GATHER[8]
    WORDS: tl.constexpr = GATHER[9]
    SEGMENTS_X: tl.constexpr = len(FIRST_X)
    kk = tl.arange(0, BK)
    b_rows = weights + (first_n + tl.arange(0, BN))[None, :].to(tl.int64) * KP + kk[:, None]
    rows = tl.arange(0, BM)
    w_words = words + rows
    bits = tl.load(w_words)[:, None]
    COPIES: tl.constexpr = max(len(PASSES) - 1, 1)  # the merged pass reads the last branch's
    a_rows = x + tl.load(corners + rows)[:, None].to(tl.int64) * PITCH
    first_y = pick(FIRST_Y, segment // SEGMENTS_X)
    first_x = pick(FIRST_X, segment % SEGMENTS_X)
    for pass_ in range(lo, hi):
        kh = 0 * pass_
        kw = 0 * pass_
        oy = 0 * pass_
        ox = 0 * pass_
        w0 = 0 * pass_
        for j in tl.static_range(len(PASSES)):
            kh = tl.where(pass_ == j, PASSES[j][0], kh)
            kw = tl.where(pass_ == j, PASSES[j][1], kw)
            oy = tl.where(pass_ == j, PASSES[j][2], oy)
            ox = tl.where(pass_ == j, PASSES[j][3], ox)
            w0 = tl.where(pass_ == j, PASSES[j][4], w0)
        jy0, ny = tap_range(first_y, STEP_Y, oy, kh)
        a_pass = a_rows + tl.cast(tl.minimum(pass_, COPIES - 1), tl.int64) * copy_stride
        if ROW_CHANNELS > 0:
            column = kk // ROW_CHANNELS
            in_row = (column < NX)[None, :]
            a_ptrs = a_pass + (column * tap_x * PITCH + kk % ROW_CHANNELS)[None, :]
            for i in tl.range(0, ny, num_stages=STAGES):
                bit = ((jy0 + i) * NX + column)[None, :]
                if WORDS > 1:
                    word = w_words[:, None] + tl.cast(bit // WORD_BITS, tl.int64) * entries
                    read = (tl.load(word, mask=in_row, other=0) >> (bit % WORD_BITS)) & 1
                else:
                    read = (bits >> tl.minimum(bit, WORD_BITS)) & 1
                a = tl.load(a_ptrs + (jy0 + i) * tap_y * PITCH, mask=(read != 0) & in_row, other=0.0)
                b = tl.load(b_rows + tl.cast(w0 + segment * SLAB + jy0 + i, tl.int64) * (NP * KP))
                acc = tl.dot(a, b, acc, input_precision=PRECISION)
        else:
            KB: tl.constexpr = KP // BK
            jx0, nx = tap_range(first_x, STEP_X, ox, kw)
            w_first = w0 + segment * SLAB + (first_y + jy0 * STEP_Y - oy) * kw + first_x + jx0 * STEP_X - ox
            a_ptrs = a_pass + kk[None, :]
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
                a = tl.load(
                    a_ptrs + (((jy0 + jy) * tap_y + (jx0 + jx) * tap_x) * PITCH + k0), mask=read, other=0.0
                )
                w_tap = w_first + jy * (STEP_Y * kw) + jx * STEP_X
                b = tl.load(b_rows + (tl.cast(w_tap, tl.int64) * (NP * KP) + k0))
                acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if RATIOS > 0:
            this = tl.minimum(pass_, RATIOS - 1)
            after = tl.minimum(pass_ + 1, RATIOS - 1)
            pixel = tl.load(pixels + rows)  # again, for the sake of registers in the loop
            row = pixel >= 0
            scale = tl.load(ratio + tl.cast(this, tl.int64) * P + pixel, mask=row, other=0.0)
            below = tl.load(ratio + tl.cast(after, tl.int64) * P + pixel, mask=row, other=1.0)
            acc *= tl.where(this == after, scale, scale / below)[:, None]
    return acc


@triton.jit
def gather_matmul(
    x0, x1, weights0, weights1, ints, words, limits, ratio, bias, out,
    entries, capacity, P, copy_stride, unscale, tap_y0, tap_x0, tap_y1, tap_x1,
    GATHER0: tl.constexpr, PASSES0: tl.constexpr, GATHER1: tl.constexpr, PASSES1: tl.constexpr,
    FIRST_Y: tl.constexpr, FIRST_X: tl.constexpr, WORDS0: tl.constexpr,
    NOUT: tl.constexpr, NP: tl.constexpr, RATIOS: tl.constexpr, PLAIN_PASS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[pixel, :NOUT] = unscale * ratio * (sum over sources and taps) + bias; 0 for dead pixels.

    GATHER1 = () if there is one source.
    """
    segment = tl.program_id(1)
    n_blocks: tl.constexpr = NP // BN
    first_n = tl.program_id(0) % n_blocks * BN
    start = tl.program_id(0) // n_blocks * BM
    mixed_end = tl.load(limits + segment * 3)
    live_end = tl.load(limits + segment * 3 + 1)
    if start >= tl.load(limits + segment * 3 + 2):
        return
    first = segment.to(tl.int64) * capacity + start
    pixels = ints + first
    mixed = start < mixed_end
    live = start < live_end
    lo = tl.where(mixed, 0, PLAIN_PASS)
    hi = tl.where(live & (start >= mixed_end), PLAIN_PASS + 1, PLAIN_PASS)
    acc = tl.zeros([BM, BN], tl.float32)
    acc = accumulate(
        acc, x0, weights0, words + first, pixels + entries, pixels, entries, segment, first_n, lo, hi,
        copy_stride, tap_y0, tap_x0, ratio, P,
        GATHER0, PASSES0, FIRST_Y, FIRST_X, NP, RATIOS if len(GATHER1) == 0 else 0, BM, BN, STAGES, PRECISION,
    )  # fmt: skip
    if len(GATHER1) > 0:
        acc = accumulate(
            acc, x1, weights1, words + WORDS0 * entries + first, pixels + 2 * entries, pixels, entries,
            segment, first_n, lo, hi, copy_stride, tap_y1, tap_x1, ratio, P,
            GATHER1, PASSES1, FIRST_Y, FIRST_X, NP, RATIOS, BM, BN, STAGES, PRECISION,
        )  # fmt: skip
    acc *= unscale
    n = first_n + tl.arange(0, BN)
    if HAS_BIAS and live:
        acc += tl.load(bias + n, mask=n < NOUT, other=0.0).to(tl.float32)[None, :]
    pixel = tl.load(pixels + tl.arange(0, BM))
    rows = out + pixel[:, None].to(tl.int64) * NOUT + n[None, :]
    tl.store(rows, acc.to(out.dtype.element_ty), mask=(pixel >= 0)[:, None] & (n < NOUT)[None, :])
