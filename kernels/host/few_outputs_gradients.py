"""Gradients with few output channels, of one source or of a decoder stage's two, in one CUDA kernel each."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import devices
from .gradients import unscale_of
from .kernel_set import Plan, current
from .problem import Problem, Source, share
from .weights import Partial


class Share(NamedTuple):
    """Gradients of one source; None where not needed."""

    x: Tensor | None
    weights: Partial | None  # for weights.finish
    sums: Tensor  # [C_out] float32: of the incoming gradient over live pixels


def plan(p: Problem, source: Source, *, needs_weights: bool) -> Plan | None:
    """How csrc/cuda/few_outputs_gradients.cu computes this; None if it cannot, or the kernels lack it."""
    kernel = current().few_outputs_gradients
    if kernel is None or p.call.scales is not None:
        return None
    like = p.call.like
    n, c, h, w = source.x.shape
    (kh, kw), (sh, sw), (dh, dw) = p.window, p.stride, p.dilation
    sizes: dict[str, Any] = {
        "N": n, "C": c, "H": h, "W": w, "KH": kh, "KW": kw, "NOUT": p.c_out,
        "SH": sh, "SW": sw, "DH": dh, "DW": dw, "UP": source.up, "NEEDS_WEIGHTS": needs_weights,
    }  # fmt: skip
    made = kernel.plan(ITEM=like.element_size(), **sizes, PROCESSORS=devices.processors(like.device))
    return Plan(made, sizes) if made.fits else None


def gradients(p: Problem, source: Source, grad_out: Tensor, plan: Plan, *, needs_x: bool) -> Share:
    """Gradients of `source` and, if `plan` has them, of its share of the weights."""
    made, needs_weights = plan.made, plan.sizes["NEEDS_WEIGHTS"]
    x, weight = source.x, share(p.call.weights[0].contiguous(), p, source)
    if not made.any_layout:
        x = x.contiguous(memory_format=torch.channels_last)
    kh, kw = p.window
    part = made.scratch // made.grid[0]
    # Zeros, because the kernel leaves columns out where there are fewer outputs than fit.
    partial = torch.zeros(made.grid[0], part, dtype=torch.float32, device=x.device)
    size = part - made.channels
    grad_x = devices.empty_features(tuple(x.shape), source.x) if needs_x else None
    dx = x if grad_x is None else grad_x
    counted = p.counted
    window = sum(counted) * kh * kw
    # In float16 the scaled gradient must not overflow, nor the sum over a pixel's copies. Only windows over a
    # valid pixel of this source count, so the largest ratio is that of one such pixel.
    unscale = unscale_of(x.dtype, -(-window // counted[source.number]) * (4 if source.up else 1))
    (x_n, x_c, x_h, x_w), (dx_n, dx_c, dx_h, dx_w) = x.stride(), dx.stride()
    grad_n, grad_c, grad_h, grad_w = grad_out.stride()
    mask0, mask1 = p.sources[0].mask, p.sources[-1].mask
    mask0_n, mask0_h, mask0_w = mask0.strides
    mask1_n, mask1_h, mask1_w = mask1.strides
    current().few_outputs_gradients[made.grid](
        **plan.sizes, x=x, x_n=x_n, x_c=x_c, x_h=x_h, x_w=x_w, dx=dx, dx_n=dx_n, dx_c=dx_c, dx_h=dx_h,
        dx_w=dx_w, grad=grad_out, grad_n=grad_n, grad_c=grad_c, grad_h=grad_h, grad_w=grad_w,
        mask0=mask0.data, mask0_n=mask0_n, mask0_h=mask0_h, mask0_w=mask0_w, MASK0=mask0.kind,
        mask1=mask1.data, mask1_n=mask1_n, mask1_h=mask1_h, mask1_w=mask1_w, MASK1=mask1.kind,
        weight=weight, weight_stride=weight.stride(0), partial=partial, part_stride=part,
        window=float(window), unscale=unscale, LAST_H=p.h, LAST_W=p.w, HO=p.ho, WO=p.wo,
        TOP=p.padding[0], LEFT=p.padding[1], SOURCES=len(p.sources), SOURCE=source.number,
        COUNTED0=counted[0], COUNTED1=counted[-1], NEEDS_X=needs_x, PRECISION=p.precision,
    )  # fmt: skip
    total = partial.sum(0)
    weights = None
    if needs_weights:
        weights = Partial(total[:size].view(1, 1, kh * kw, source.channels, made.channels), (-1,), 0, unscale)
    return Share(grad_x, weights, total[size : size + p.c_out])
