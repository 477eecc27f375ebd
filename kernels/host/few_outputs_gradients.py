"""Gradients with few output channels, of one source or of a decoder stage's two, in one CUDA kernel each."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import devices
from .gradients import unscale_of
from .kernel_set import current
from .problem import Problem, Source, share
from .weights import Partial


class Share(NamedTuple):
    """Gradients of one source; None where not needed."""

    x: Tensor | None
    weights: Partial | None  # for weights.finish
    sums: Tensor  # [C_out] float32: of the incoming gradient over live pixels


def plan(p: Problem, source: Source, *, needs_weights: bool) -> Any:
    """How csrc/cuda/few_outputs_gradients.cu computes this; None if it cannot, or the kernels lack it."""
    kernel = current().few_outputs_gradients
    if kernel is None or p.call.scales is not None:
        return None
    like = p.call.like
    made = kernel.plan(
        ITEM=like.element_size(),
        **sizes(p, source, needs_weights),
        PROCESSORS=devices.processors(like.device),
    )
    return made if made.fits else None


def sizes(p: Problem, source: Source, needs_weights: bool) -> dict[str, Any]:
    """What the kernel knows of `p`."""
    n, c, h, w = source.x.shape
    (kh, kw), (sh, sw), (dh, dw) = p.window, p.stride, p.dilation
    return {
        "N": n, "C": c, "H": h, "W": w, "KH": kh, "KW": kw, "NOUT": p.c_out,
        "SH": sh, "SW": sw, "DH": dh, "DW": dw, "UP": source.up, "NEEDS_WEIGHTS": needs_weights,
    }  # fmt: skip


def gradients(
    p: Problem, source: Source, grad_out: Tensor, made: Any, *, needs_x: bool, needs_weights: bool
) -> Share:
    """Gradients of `source`, and of its share of the weights. `made`: what `plan` told."""
    x, weight = source.x, share(p.call.weights[0].contiguous(), p, source)
    if not made.any_layout:
        x = x.contiguous(memory_format=torch.channels_last)
    c = x.shape[1]
    kh, kw = p.window
    # Zeros, because the kernel leaves columns out where there are fewer outputs than fit.
    partial = torch.zeros((made.grid[0], made.scratch // made.grid[0]), dtype=torch.float32, device=x.device)
    size = partial.shape[1] - made.channels
    grad_x = devices.empty_features(tuple(x.shape), source.x) if needs_x else None
    dx = x if grad_x is None else grad_x
    counted = p.counted
    window = sum(counted) * kh * kw
    # In float16 the scaled gradient must not overflow, nor the sum over a pixel's copies. Only windows over a
    # valid pixel of this source count, so the largest ratio is that of one such pixel.
    unscale = unscale_of(x.dtype, -(-window // counted[source.number]) * (4 if source.up else 1))
    strides: dict[str, Any] = {}
    for name, tensor in (("x", x), ("grad", grad_out), ("dx", dx)):
        strides |= {f"{name}_{axis}": step for axis, step in zip("nchw", tensor.stride(), strict=True)}
    for i, mask in ((0, p.sources[0].mask), (1, p.sources[-1].mask)):
        mask_n, mask_h, mask_w = mask.strides
        strides |= {
            f"mask{i}": mask.data, f"MASK{i}": mask.kind,
            f"mask{i}_n": mask_n, f"mask{i}_h": mask_h, f"mask{i}_w": mask_w,
        }  # fmt: skip
    current().few_outputs_gradients[made.grid](
        **sizes(p, source, needs_weights), **strides, x=x, grad=grad_out, weight=weight, dx=dx,
        partial=partial, weight_stride=weight.stride(0), part_stride=partial.shape[1], window=float(window),
        unscale=unscale, LAST_H=p.h, LAST_W=p.w, HO=p.ho, WO=p.wo, TOP=p.padding[0], LEFT=p.padding[1],
        SOURCES=len(p.sources), SOURCE=source.number, COUNTED0=counted[0], COUNTED1=counted[-1],
        NEEDS_X=needs_x, PRECISION=devices.precision(x.dtype),
    )  # fmt: skip
    total = partial.sum(0)
    weights = None
    if needs_weights:
        weights = Partial(total[:size].view(1, 1, kh * kw, c, made.channels), (-1,), 0, unscale)
    return Share(grad_x, weights, total[size : size + p.c_out])
