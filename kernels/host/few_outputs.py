"""Forward with few output channels, of one source or of a decoder stage's two, in one CUDA kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pconv_ext._geometry import memory_format

from . import devices
from .kernel_set import current
from .masks import empty_mask
from .problem import Problem


def plan(p: Problem) -> Any:
    """How csrc/cuda/few_outputs.cu computes `p`; None if it cannot, or the current kernels lack it."""
    kernel = current().few_outputs
    if kernel is None or p.call.scales is not None:
        return None
    made = kernel.plan(ITEM=p.call.like.element_size(), **sizes(p))
    return made if made.fits else None


def sizes(p: Problem) -> dict[str, Any]:
    """What the kernel knows of `p`."""
    (top, left), (kh, kw), (sh, sw), (dh, dw) = p.padding, p.window, p.stride, p.dilation
    channels = [source.channels for source in p.sources]
    return {
        "N": p.n, "HO": p.ho, "WO": p.wo, "TOP": top, "LEFT": left, "KH": kh, "KW": kw, "NOUT": p.c_out,
        "SH": sh, "SW": sw, "DH": dh, "DW": dw, "C0": channels[0], "C1": sum(channels[1:]),
        "UP": p.sources[0].up,
    }  # fmt: skip


def forward(p: Problem, bias: Tensor | None, made: Any) -> tuple[Tensor, Tensor]:
    """out, in the layout of the call, and new_mask. `made`: what `plan` told."""
    like = p.call.like
    shape = (p.n, p.c_out, p.ho, p.wo)
    out = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))
    new_mask, stored = empty_mask((p.n, 1, p.ho, p.wo), p.call.mask_like)
    packed = torch.empty(made.scratch, dtype=torch.int32, device=like.device)
    strides: dict[str, Any] = {}
    for i, source in ((0, p.sources[0]), (1, p.sources[-1])):
        x, (n, c, h, w) = as_read(source.x, any_layout=made.any_layout[source.number])
        mask_n, mask_h, mask_w = source.mask.strides
        strides |= {
            f"x{i}": x, f"x{i}_n": n, f"x{i}_c": c, f"x{i}_h": h, f"x{i}_w": w,
            f"mask{i}": source.mask.data, f"MASK{i}": source.mask.kind,
            f"mask{i}_n": mask_n, f"mask{i}_h": mask_h, f"mask{i}_w": mask_w,
        }  # fmt: skip
    out_n, out_c, out_h, out_w = out.stride()
    current().few_outputs[made.grid](
        **sizes(p), **strides, weight=p.call.weights[0].contiguous(), packed=packed,
        bias=out if bias is None else bias.contiguous(), out=out, new_mask=stored,
        out_n=out_n, out_c=out_c, out_h=out_h, out_w=out_w,
        H0=p.sources[0].x.shape[2], W0=p.sources[0].x.shape[3], H=p.h, W=p.w,
        HAS_BIAS=bias is not None, PRECISION=devices.precision(out.dtype),
    )  # fmt: skip
    return out, new_mask


def as_read(x: Tensor, *, any_layout: bool) -> tuple[Tensor, tuple[int, ...]]:
    """Tensor and its strides: as it is, if it may have any layout, else in channels-last storage."""
    if any_layout:
        return x, x.stride()
    _, c, h, w = x.shape
    return x.contiguous(memory_format=torch.channels_last), (c * h * w, 1, c * w, c)
