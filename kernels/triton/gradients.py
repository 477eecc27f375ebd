"""The incoming gradient: scaled copies that the matrix kernels of the backward read, and its sum."""

import triton
import triton.language as tl

from .rows import DEAD, MIXED


@triton.jit
def scale_gradient(
    grad, ratio, pixel_state, copies, sums, P, copy_stride, rounds, scale,
    NOUT: tl.constexpr, PITCH: tl.constexpr, RATIOS: tl.constexpr, COPIES: tl.constexpr,
    ALL: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """grad [P, NOUT] -> copies [RATIOS, P, PITCH] and sums [blocks, NOUT] over live pixels, in float32.

    Copy b is scale * r_b * grad, 0 where dead. Without ALL the copies before the last are written at mixed
    pixels alone, where the weights' gradients read them. Selects, so that NaN at a dead pixel goes nowhere.
    """
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros([BC], tl.float32)
    for i in range(rounds):
        p = (tl.program_id(0) * rounds + i) * BP + tl.arange(0, BP)
        kind = tl.load(pixel_state + p, mask=p < P, other=2)
        live = (kind != DEAD)[:, None]
        rows = p[:, None].to(tl.int64)
        g = tl.load(grad + rows * NOUT + c[None, :], mask=live & (c < NOUT)[None, :], other=0.0)
        g = g.to(tl.float32)
        total += tl.sum(g, axis=0)
        if COPIES:
            to = copies + rows * PITCH + c[None, :]
            for b in tl.static_range(RATIOS):
                write = p < P
                if b < RATIOS - 1 and not ALL:
                    write = write & (kind == MIXED)
                r = tl.load(ratio + b * tl.cast(P, tl.int64) + p, mask=p < P, other=0.0) * scale
                to_copy = to + b * tl.cast(copy_stride, tl.int64)
                value = (g * r[:, None]).to(copies.dtype.element_ty)
                tl.store(to_copy, value, mask=write[:, None] & (c < PITCH)[None, :])
    tl.store(sums + tl.program_id(0).to(tl.int64) * NOUT + c, total, mask=c < NOUT)
