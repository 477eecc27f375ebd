"""Forward over few channels in one launch: the CUDA kernel ``few_inputs``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import devices
from .kernel_set import Plan, current
from .masks import empty_mask
from .problem import Problem
from .sizes import row_channels, row_depth
from .weights import flat, pack


def plan(p: Problem) -> Plan | None:
    """How csrc/cuda/few_inputs.cu computes `p`; None if it cannot, or the current kernels lack it."""
    kernel = current().few_inputs
    if kernel is None or not (kp := depth(p)):
        return None
    passes = tuple(map(tuple, p.sources[0].taps.passes))
    known = sizes(p) | {"KP": kp, "PASSES": passes}
    made = kernel.plan(ITEM=p.call.like.element_size(), **known)
    return Plan(made, known) if made.fits else None


def depth(p: Problem) -> int:
    """Elements of a row of taps over the only source, if it has few channels; else 0."""
    if len(p.sources) > 1:
        return 0
    return row_depth(p.sources[0].channels, p.window[1], p.call.like.element_size())


def sizes(p: Problem) -> dict[str, Any]:
    """What the kernels of few channels know of `p`."""
    (source,) = p.sources
    (top, left), (sh, sw), (dh, dw) = p.padding, p.stride, p.dilation
    x_n, x_c, x_h, x_w = source.x.stride()
    mask_n, mask_h, mask_w = source.mask.strides
    return {
        "x_n": x_n, "x_c": x_c, "x_h": x_h, "x_w": x_w, "mask_n": mask_n, "mask_h": mask_h, "mask_w": mask_w,
        "N": p.n, "C": source.channels, "H": p.h, "W": p.w, "NOUT": p.c_out, "HO": p.ho, "WO": p.wo,
        "TOP": top, "LEFT": left, "SH": sh, "SW": sw, "DH": dh, "DW": dw,
        "ROW_CHANNELS": row_channels(source.channels),
    }  # fmt: skip


def forward(p: Problem, scales: Tensor | None, bias: Tensor | None, plan: Plan) -> tuple[Tensor, Tensor]:
    """out and new_mask."""
    (source,) = p.sources
    x, c_in, rows = source.x, source.channels, plan.made.channels
    packed = pack(
        flat(p.call.weights, p.branches), scales, p.branches, source.taps, p.c_out, c_in, c_in, 1, rows,
        adjoint=False,
    )  # fmt: skip
    out = devices.empty_features((p.n, p.c_out, p.ho, p.wo), x)
    new_mask, stored = empty_mask((p.n, 1, p.ho, p.wo), p.call.mask_like)
    current().few_inputs[(1,)](
        **plan.sizes, x=x, mask=source.mask.data, weights=packed.data,
        bias=out if bias is None else bias.contiguous(), out=out, new_mask=stored, NP=rows,
        MASK=source.mask.kind, HAS_BIAS=bias is not None, PRECISION=p.precision,
    )  # fmt: skip
    return out, new_mask
