"""Forward with few output channels, of one source or of a decoder stage's two, in one CUDA kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pconv_ext._geometry import memory_format

from .kernel_set import Plan, current
from .masks import empty_mask
from .problem import Problem


def plan(p: Problem) -> Plan | None:
    """How csrc/cuda/few_outputs.cu computes `p`; None if it cannot, or the current kernels lack it."""
    kernel = current().few_outputs
    if kernel is None or p.call.scales is not None:
        return None
    (top, left), (kh, kw), (sh, sw), (dh, dw) = p.padding, p.window, p.stride, p.dilation
    sizes: dict[str, Any] = {
        "N": p.n, "HO": p.ho, "WO": p.wo, "TOP": top, "LEFT": left, "KH": kh, "KW": kw, "NOUT": p.c_out,
        "SH": sh, "SW": sw, "DH": dh, "DW": dw, "C0": p.sources[0].channels,
        "C1": p.sources[1].channels if len(p.sources) > 1 else 0, "UP": p.sources[0].up,
    }  # fmt: skip
    made = kernel.plan(ITEM=p.call.like.element_size(), **sizes)
    return Plan(made, sizes) if made.fits else None


def forward(p: Problem, bias: Tensor | None, plan: Plan) -> tuple[Tensor, Tensor]:
    """out, in the layout of the call, and new_mask."""
    like, made = p.call.like, plan.made
    shape = (p.n, p.c_out, p.ho, p.wo)
    out = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))
    new_mask, stored = empty_mask((p.n, 1, p.ho, p.wo), p.call.mask_like)
    packed = torch.empty(made.scratch, dtype=torch.int32, device=like.device)
    first, last = p.sources[0], p.sources[-1]
    x0, x0_strides = x1, x1_strides = as_read(first.x, any_layout=made.any_layout[0])
    if last is not first:
        x1, x1_strides = as_read(last.x, any_layout=made.any_layout[1])
    x0_n, x0_c, x0_h, x0_w = x0_strides
    x1_n, x1_c, x1_h, x1_w = x1_strides
    mask0_n, mask0_h, mask0_w = first.mask.strides
    mask1_n, mask1_h, mask1_w = last.mask.strides
    out_n, out_c, out_h, out_w = out.stride()
    current().few_outputs[made.grid](
        **plan.sizes, x0=x0, x0_n=x0_n, x0_c=x0_c, x0_h=x0_h, x0_w=x0_w,
        x1=x1, x1_n=x1_n, x1_c=x1_c, x1_h=x1_h, x1_w=x1_w,
        mask0=first.mask.data, mask0_n=mask0_n, mask0_h=mask0_h, mask0_w=mask0_w, MASK0=first.mask.kind,
        mask1=last.mask.data, mask1_n=mask1_n, mask1_h=mask1_h, mask1_w=mask1_w, MASK1=last.mask.kind,
        weight=p.call.weights[0].contiguous(), packed=packed,
        bias=out if bias is None else bias.contiguous(), out=out, new_mask=stored,
        out_n=out_n, out_c=out_c, out_h=out_h, out_w=out_w,
        H0=first.x.shape[2], W0=first.x.shape[3], H=p.h, W=p.w,
        HAS_BIAS=bias is not None, PRECISION=p.precision,
    )  # fmt: skip
    return out, new_mask


def as_read(x: Tensor, *, any_layout: bool) -> tuple[Tensor, tuple[int, ...]]:
    """Tensor and its strides: as it is, if it may have any layout, else in channels-last storage."""
    if any_layout:
        return x, x.stride()
    _, c, h, w = x.shape
    return x.contiguous(memory_format=torch.channels_last), (c * h * w, 1, c * w, c)
