"""Rows: which output pixels a matrix kernel works on, in which order, and which taps each of them may read.

The *windows* kernels look at nothing but mask planes. For every output pixel (or, going backward, every input
pixel) they write its window as bits (bit i set: tap i is inside and valid), the scale factors, the updated
mask and a state. `compact` then sorts the pixels of every segment by state, with a count, a prefix sum and a
scatter; nothing waits for the host and the order is always the same.

States: MIXED pixels need one pass for each branch, PLAIN ones a single pass over the merged weights, DEAD
ones (backward: holes) are zero. A segment is the set of pixels that share their weights: all of them in
a forward convolution, those of one parity going backward through a stride or forward through an up-sampling.
"""

import triton
import triton.language as tl

from ..host import taps

MIXED = tl.constexpr(0)
PLAIN = tl.constexpr(1)
DEAD = tl.constexpr(2)
OUTSIDE = tl.constexpr(3)  # beyond the last pixel of the segment
WORD_BITS = tl.constexpr(taps.WORD_BITS)


@triton.jit
def popcount(v):
    """Number of set bits of a non-negative int64, in int32."""
    v = v - ((v >> 1) & 0x5555555555555555)
    v = (v & 0x3333333333333333) + ((v >> 2) & 0x3333333333333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F0F0F0F0F
    v = v + (v >> 8)
    v = v + (v >> 16)
    v = v + (v >> 32)
    return (v & 0x7F).to(tl.int32)


@triton.jit
def pick(table: tl.constexpr, i):
    """``table[i]`` of a tuple of ints at a run-time index."""
    value = table[0] + 0 * i
    for j in tl.static_range(1, len(table)):
        value = tl.where(i == j, table[j], value)
    return value


@triton.jit
def segment_pixel(
    j, segment, N, H, W, STEP_H: tl.constexpr, STEP_W: tl.constexpr, CUT_H: tl.constexpr, CUT_W: tl.constexpr
):
    """Pixel `j` of `segment`: image, row, column, whether it exists.

    Rows come in STEP_H + CUT_H types: those of each residue modulo STEP_H, except the last CUT_H rows, which
    are types of their own. Columns likewise; ``segment = row type * column types + column type``.
    """
    TYPES_W: tl.constexpr = STEP_W + CUT_W
    ty = segment // TYPES_W
    tx = segment % TYPES_W
    rows = tl.where(ty < STEP_H, tl.maximum(H - CUT_H - ty + STEP_H - 1, 0) // STEP_H, 1)
    cols = tl.where(tx < STEP_W, tl.maximum(W - CUT_W - tx + STEP_W - 1, 0) // STEP_W, 1)
    t = j // tl.maximum(cols, 1)
    n = t // tl.maximum(rows, 1)
    y = t % tl.maximum(rows, 1)
    x = j % tl.maximum(cols, 1)
    y = tl.where(ty < STEP_H, ty + y * STEP_H, H - CUT_H + ty - STEP_H)
    x = tl.where(tx < STEP_W, tx + x * STEP_W, W - CUT_W + tx - STEP_W)
    return n, y, x, (n < N) & (rows > 0) & (cols > 0)


@triton.jit
def valid_at(mask, n, y, x, H, W, stride_n, stride_h, stride_w, inside, MASK: tl.constexpr):
    """Whether (y, x) lies in the image and is no hole.

    MASK: 0 all of the image is valid, 1 `mask` holds integers, 2 the bits of floats, whose sign says nothing.
    """
    inside = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    if MASK > 0:
        where = n.to(tl.int64) * stride_n + y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w
        value = tl.load(mask + where, mask=inside, other=0)
        if MASK == 2:
            value = value << 1
        return value != 0
    return inside


@triton.jit
def count_states(state, counts, segment, block, n_blocks):
    """Write how many pixels of this block are in each state."""
    for c in tl.static_range(3):
        tl.store(counts + (segment * 3 + c) * n_blocks + block, tl.sum((state == c).to(tl.int32), axis=0))


@triton.jit
def window_bits(bits, HIGH: tl.constexpr, WIDE: tl.constexpr, FIRST: tl.constexpr, KW: tl.constexpr):
    """Those of a window's `bits` (rows of KW) that belong to a HIGH x WIDE part of it, from bit FIRST on."""
    window = bits * 0
    for i in tl.static_range(HIGH):
        window |= bits & (((1 << WIDE) - 1) << (FIRST + i * KW))
    return window


@triton.jit
def store_ratio(to, count, SIZE: tl.constexpr, ok):
    """Window size over valid entries; 0 where there are none."""
    r = SIZE / tl.maximum(count, 1).to(tl.float32)
    tl.store(to, tl.where(count > 0, r, 0.0), mask=ok)


@triton.jit
def forward_windows(
    mask, new_mask, ratio, pixel_state, entry_state, entry_ints, entry_words, counts,
    N, H, W, HO, WO, Q, n_blocks, pad_top, pad_left, mask_n, mask_h, mask_w,
    WINDOWS: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    MASK: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Output pixels of a convolution with one or more branches that share their centre.

    WINDOWS: (kh, kw, oy, ox) of each branch, in ascending order; (oy, ox) is where it lies in the last one's.
    Writes ratio [len(WINDOWS), P] and new_mask [P]; entries have ints (pixel, corner of the window in x).
    """
    NK: tl.constexpr = len(WINDOWS)
    KH: tl.constexpr = WINDOWS[NK - 1][0]
    KW: tl.constexpr = WINDOWS[NK - 1][1]
    block = tl.program_id(0)
    P = N * HO * WO
    j = block * BLOCK + tl.arange(0, BLOCK)
    ok = j < P
    x = j % WO
    y = (j // WO) % HO
    n = j // (WO * HO)
    y0 = y * SH - pad_top
    x0 = x * SW - pad_left
    first = tl.zeros([BLOCK], tl.int32)  # valid entries of the smallest window
    whole = ok
    for word in tl.static_range(WORDS):
        bits = tl.zeros([BLOCK], tl.int64)
        for t in range(word * WORD_BITS, min((word + 1) * WORD_BITS, KH * KW)):
            v = valid_at(
                mask, n, y0 + (t // KW) * DH, x0 + (t % KW) * DW, H, W, mask_n, mask_h, mask_w, ok, MASK
            )
            bits |= v.to(tl.int64) << (t - word * WORD_BITS)
        tl.store(entry_words + word * Q + j, bits)
        if WORDS == 1:
            for k in tl.static_range(NK):
                count = popcount(
                    window_bits(bits, WINDOWS[k][0], WINDOWS[k][1], WINDOWS[k][2] * KW + WINDOWS[k][3], KW)
                )
                whole = whole & (count == WINDOWS[k][0] * WINDOWS[k][1])
                store_ratio(ratio + k * P + j, count, WINDOWS[k][0] * WINDOWS[k][1], ok)
                if k == 0:
                    first = count
    if WORDS > 1:
        for k in tl.static_range(NK):
            count = tl.zeros([BLOCK], tl.int32)
            for t in range(0, WINDOWS[k][0] * WINDOWS[k][1]):
                iy = y0 + (WINDOWS[k][2] + t // WINDOWS[k][1]) * DH
                ix = x0 + (WINDOWS[k][3] + t % WINDOWS[k][1]) * DW
                count += valid_at(mask, n, iy, ix, H, W, mask_n, mask_h, mask_w, ok, MASK).to(tl.int32)
            whole = whole & (count == WINDOWS[k][0] * WINDOWS[k][1])
            store_ratio(ratio + k * P + j, count, WINDOWS[k][0] * WINDOWS[k][1], ok)
            if k == 0:
                first = count
    live = first > 0
    tl.store(new_mask + j, live.to(tl.float32).to(new_mask.dtype.element_ty), mask=ok)
    if NK == 1:
        state = tl.where(live, PLAIN, DEAD)
    else:
        state = tl.where(live, tl.where(whole, PLAIN, MIXED), DEAD)
    tl.store(pixel_state + j, state.to(tl.int8), mask=ok)
    state = tl.where(ok, state, OUTSIDE)
    tl.store(entry_state + j, state.to(tl.int8))
    tl.store(entry_ints + j, j)
    tl.store(entry_ints + Q + j, (n * H + y0) * W + x0)
    count_states(state, counts, 0, block, n_blocks)


@triton.jit
def adjoint_windows(
    mask, pixel_state, entry_state, entry_ints, entry_words, counts,
    N, H, W, HO, WO, Q, n_blocks, pad_top, pad_left, mask_n, mask_h, mask_w,
    FIRST_Y: tl.constexpr, FIRST_X: tl.constexpr, STEP_Y: tl.constexpr, STEP_X: tl.constexpr,
    JUMP_Y: tl.constexpr, JUMP_X: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    NY: tl.constexpr, NX: tl.constexpr, REACH: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    MASK: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Input pixels of a convolution: the output pixels whose windows hold them.

    Of the pixels of one segment (their residues modulo the stride) the j-th tap in a direction is
    ``FIRST[residue] + j * STEP`` of the window, at an output pixel ``j * JUMP`` before the first one's. A
    pixel is MIXED where an output pixel that is, holds it within the window REACH = (kh, kw, oy, ox) (the
    second largest branch's, () if there is one only). Entries have ints (pixel, first output pixel) and words
    of the taps at live output pixels.
    """
    block = tl.program_id(0)
    segment = tl.program_id(1)
    i = block * BLOCK + tl.arange(0, BLOCK)
    n, y, x, ok = segment_pixel(i, segment, N, H, W, SH, SW, 0, 0)
    inside = valid_at(mask, n, y, x, H, W, mask_n, mask_h, mask_w, ok, MASK)
    dy0 = pick(FIRST_Y, segment // SW)
    dx0 = pick(FIRST_X, segment % SW)
    oy0 = (y + pad_top - dy0 * DH) // SH  # exact in a segment
    ox0 = (x + pad_left - dx0 * DW) // SW
    e = segment * Q + i
    total = tl.num_programs(1) * Q
    mixed = tl.zeros([BLOCK], tl.int1)
    for word in tl.static_range(WORDS):
        bits = tl.zeros([BLOCK], tl.int64)
        for t in range(word * WORD_BITS, min((word + 1) * WORD_BITS, NY * NX)):
            dy = dy0 + (t // NX) * STEP_Y
            dx = dx0 + (t % NX) * STEP_X
            oy = oy0 - (t // NX) * JUMP_Y
            ox = ox0 - (t % NX) * JUMP_X
            fits = inside & (dy < KH) & (dx < KW) & (oy >= 0) & (oy < HO) & (ox >= 0) & (ox < WO)
            state = tl.load(pixel_state + (n * HO + oy) * WO + ox, mask=fits, other=2)
            bits |= (fits & (state != DEAD)).to(tl.int64) << (t - word * WORD_BITS)
            if len(REACH) > 0:
                near = (dy >= REACH[2]) & (dy < REACH[2] + REACH[0])
                near = near & (dx >= REACH[3]) & (dx < REACH[3] + REACH[1])
                near = fits & near & (state == MIXED)
                mixed = mixed | near
        tl.store(entry_words + word * total + e, bits)
    state = tl.where(ok, tl.where(inside, tl.where(mixed, MIXED, PLAIN), DEAD), OUTSIDE)
    tl.store(entry_state + e, state.to(tl.int8))
    tl.store(entry_ints + e, (n * H + y) * W + x)
    tl.store(entry_ints + total + e, (n * HO + oy0) * WO + ox0)
    count_states(state, counts, segment, block, n_blocks)


@triton.jit
def upcat_windows(
    mask_low, mask_skip, new_mask, ratio, pixel_state, entry_state, entry_ints, entry_words, counts,
    N, H, W, LH, LW, Q, n_blocks, low_n, low_h, low_w, skip_n, skip_h, skip_w,
    C_LOW: tl.constexpr, C_SKIP: tl.constexpr, K: tl.constexpr, CUT_H: tl.constexpr, CUT_W: tl.constexpr,
    LOW_MASK: tl.constexpr, SKIP_MASK: tl.constexpr,
    WORDS_LOW: tl.constexpr, WORDS_SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Output pixels of a decoder stage, by parity (and rows and columns that an odd size cuts).

    Its K x K window covers KM x KM pixels of the low-resolution map. Entries have ints (pixel, corner in the
    low map, corner in the skip) and words (low, skip).
    """
    R: tl.constexpr = K // 2
    KM: tl.constexpr = (K + 1) // 2
    block = tl.program_id(0)
    segment = tl.program_id(1)
    i = block * BLOCK + tl.arange(0, BLOCK)
    n, y, x, ok = segment_pixel(i, segment, N, H, W, 2, 2, CUT_H, CUT_W)
    e = segment * Q + i
    total = tl.num_programs(1) * Q
    p = (n * H + y) * W + x
    y0 = y - R
    x0 = x - R
    ly0 = y0 >> 1
    lx0 = x0 >> 1
    low = tl.zeros([BLOCK], tl.int32)
    skip = tl.zeros([BLOCK], tl.int32)
    for word in tl.static_range(WORDS_LOW):
        bits = tl.zeros([BLOCK], tl.int64)
        for t in range(word * WORD_BITS, min((word + 1) * WORD_BITS, KM * KM)):
            ly = ly0 + t // KM
            lx = lx0 + t % KM
            v = valid_at(mask_low, n, ly, lx, LH, LW, low_n, low_h, low_w, ok, LOW_MASK)
            bits |= v.to(tl.int64) << (t - word * WORD_BITS)
            # how much of the 2 x 2 pixels of the up-sampled map the window and the image hold
            rows = tl.minimum(tl.minimum(2 * ly + 2, y0 + K), H) - tl.maximum(2 * ly, y0)
            cols = tl.minimum(tl.minimum(2 * lx + 2, x0 + K), W) - tl.maximum(2 * lx, x0)
            low += tl.where(v, rows * cols, 0)
        tl.store(entry_words + word * total + e, bits)
    for word in tl.static_range(WORDS_SKIP):
        bits = tl.zeros([BLOCK], tl.int64)
        for t in range(word * WORD_BITS, min((word + 1) * WORD_BITS, K * K)):
            v = valid_at(mask_skip, n, y0 + t // K, x0 + t % K, H, W, skip_n, skip_h, skip_w, ok, SKIP_MASK)
            bits |= v.to(tl.int64) << (t - word * WORD_BITS)
            skip += v.to(tl.int32)
        tl.store(entry_words + (WORDS_LOW + word) * total + e, bits)
    count = C_LOW * low + C_SKIP * skip
    live = count > 0
    r = tl.where(live, (C_LOW + C_SKIP) * K * K / tl.maximum(count, 1).to(tl.float32), 0.0)
    state = tl.where(live, PLAIN, DEAD)
    tl.store(ratio + p, r, mask=ok)
    tl.store(new_mask + p, live.to(tl.float32).to(new_mask.dtype.element_ty), mask=ok)
    tl.store(pixel_state + p, state.to(tl.int8), mask=ok)
    state = tl.where(ok, state, OUTSIDE)
    tl.store(entry_state + e, state.to(tl.int8))
    tl.store(entry_ints + e, p)
    tl.store(entry_ints + total + e, (n * LH + ly0) * LW + lx0)
    tl.store(entry_ints + 2 * total + e, (n * H + y0) * W + x0)
    count_states(state, counts, segment, block, n_blocks)


@triton.jit
def low_adjoint_windows(
    mask_low, pixel_state, entry_state, entry_ints, entry_words, counts,
    N, H, W, LH, LW, Q, n_blocks, low_n, low_h, low_w,
    K: tl.constexpr, CUT_H: tl.constexpr, CUT_W: tl.constexpr,
    LOW_MASK: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Low-resolution pixels of a decoder stage: the (K + 1) x (K + 1) output pixels that read each of them.

    The last row (column) is a segment of its own where an odd size cuts its second copy off.
    """
    R: tl.constexpr = K // 2
    block = tl.program_id(0)
    segment = tl.program_id(1)
    i = block * BLOCK + tl.arange(0, BLOCK)
    n, y, x, ok = segment_pixel(i, segment, N, LH, LW, 1, 1, CUT_H, CUT_W)
    inside = valid_at(mask_low, n, y, x, LH, LW, low_n, low_h, low_w, ok, LOW_MASK)
    oy0 = 2 * y - R
    ox0 = 2 * x - R
    e = segment * Q + i
    total = tl.num_programs(1) * Q
    for word in tl.static_range(WORDS):
        bits = tl.zeros([BLOCK], tl.int64)
        for t in range(word * WORD_BITS, min((word + 1) * WORD_BITS, (K + 1) * (K + 1))):
            oy = oy0 + t // (K + 1)
            ox = ox0 + t % (K + 1)
            fits = inside & (oy >= 0) & (oy < H) & (ox >= 0) & (ox < W)
            state = tl.load(pixel_state + (n * H + oy) * W + ox, mask=fits, other=2)
            bits |= (fits & (state != DEAD)).to(tl.int64) << (t - word * WORD_BITS)
        tl.store(entry_words + word * total + e, bits)
    state = tl.where(ok, tl.where(inside, PLAIN, DEAD), OUTSIDE)
    tl.store(entry_state + e, state.to(tl.int8))
    tl.store(entry_ints + e, (n * LH + y) * LW + x)
    tl.store(entry_ints + total + e, (n * H + oy0) * W + ox0)
    count_states(state, counts, segment, block, n_blocks)


@triton.jit
def compact(
    entry_state, entry_ints, entry_words, counts, ints, words, limits, Q, n_blocks, capacity,
    INTS: tl.constexpr, WORDS: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sort the entries of each segment by state, those of each filled up to a multiple of PAD.

    entry_ints [INTS, S, Q] -> ints [INTS, S, capacity] and the same of the int64 words. Fillers have pixel -1
    and no bits. limits [S, 3]: where each state ends.
    """
    block = tl.program_id(0)
    segment = tl.program_id(1)
    total = tl.num_programs(1) * Q
    all_capacity = tl.num_programs(1) * capacity
    e = segment * Q + block * BLOCK + tl.arange(0, BLOCK)
    state = tl.load(entry_state + e)
    chunk = tl.arange(0, 256)
    fill = tl.arange(0, PAD)
    start = segment * capacity
    for c in tl.static_range(3):
        size = 0
        before = 0
        for i in range(0, n_blocks, 256):
            k = i + chunk
            count = tl.load(counts + (segment * 3 + c) * n_blocks + k, mask=k < n_blocks, other=0)
            size += tl.sum(count, axis=0)
            before += tl.sum(tl.where(k < block, count, 0), axis=0)
        mine = state == c
        to = start + before + tl.cumsum(mine.to(tl.int32), axis=0) - 1
        for a in tl.static_range(INTS):
            tl.store(ints + a * all_capacity + to, tl.load(entry_ints + a * total + e), mask=mine)
        for a in tl.static_range(WORDS):
            tl.store(words + a * all_capacity + to, tl.load(entry_words + a * total + e), mask=mine)
        end = start + tl.cdiv(size, PAD) * PAD
        if block == 0:
            filler = start + size + fill
            for a in tl.static_range(INTS):
                nothing = tl.full([PAD], -1 if a == 0 else 0, tl.int32)
                tl.store(ints + a * all_capacity + filler, nothing, mask=filler < end)
            for a in tl.static_range(WORDS):
                tl.store(words + a * all_capacity + filler, tl.zeros([PAD], tl.int64), mask=filler < end)
            tl.store(limits + segment * 3 + c, end - segment * capacity)
        start = end
