"""The incoming gradient: scaled copies that the matrix kernels of the backward read, and its sum."""

import triton
import triton.language as tl

from .rows import DEAD, MIXED


@triton.jit
def scale_gradient(
    grad, ratio, state, copies, sums, P, copy_stride,
    NOUT: tl.constexpr, PITCH: tl.constexpr, RATIOS: tl.constexpr, COPIES: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """grad [P, NOUT] -> copies [RATIOS, P, PITCH] and sums [blocks, NOUT] over live pixels, in float32.

    The last copy is grad * r_last, 0 where dead. Copy b before it is grad * (r_b - r_last), at mixed pixels
    alone: nobody reads the rest. Selects, so that NaN at a dead pixel goes nowhere.
    """
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros([BC], tl.float32)
    for i in range(ROUNDS):
        p = (tl.program_id(0) * ROUNDS + i) * BP + tl.arange(0, BP)
        kind = tl.load(state + p, mask=p < P, other=2)
        live = (kind != DEAD)[:, None]
        rows = p[:, None].to(tl.int64)
        g = tl.load(grad + rows * NOUT + c[None, :], mask=live & (c < NOUT)[None, :], other=0.0).to(
            tl.float32
        )
        total += tl.sum(g, axis=0)
        if COPIES:
            last = tl.load(ratio + (RATIOS - 1) * tl.cast(P, tl.int64) + p, mask=p < P, other=0.0)
            to = copies + rows * PITCH + c[None, :]
            ok = (p < P)[:, None] & (c < PITCH)[None, :]
            value = g * last[:, None]
            tl.store(
                to + (RATIOS - 1) * tl.cast(copy_stride, tl.int64), value.to(copies.dtype.element_ty), mask=ok
            )
            for b in tl.static_range(RATIOS - 1):
                more = tl.load(ratio + b * tl.cast(P, tl.int64) + p, mask=p < P, other=0.0) - last
                value = g * more[:, None]
                to_copy = to + b * tl.cast(copy_stride, tl.int64)
                tl.store(to_copy, value.to(copies.dtype.element_ty), mask=ok & (kind == MIXED)[:, None])
    tl.store(sums + tl.program_id(0).to(tl.int64) * NOUT + c, total, mask=c < NOUT)
