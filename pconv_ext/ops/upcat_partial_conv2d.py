"""``upcat_partial_conv2d`` under the dispatcher. Formula: `pconv_ext.reference.upcat_partial_conv2d`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _checks
from .._geometry import centred
from ._operator import Operator
from .call import Call, Source


def check(
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Any, ...]:
    """The operator's arguments, from those of the public function; else TypeError or ValueError."""
    op = "upcat_partial_conv2d"
    _checks.features(op, "x_low", x_low)
    _checks.features(op, "skip", skip)
    _checks.like(op, "skip", skip, "x_low", x_low)
    n, _, h, w = x_low.shape
    height, width = skip.shape[2], skip.shape[3]
    # (height + 1) // 2 in the form of a stride of 2, so that exporting with dynamic sizes can prove it
    if skip.shape[0] != n or (height + 1) // 2 != h or (width + 1) // 2 != w:
        raise ValueError(
            f"{op}: skip must have shape [{n}, C, {2 * h} or {2 * h - 1}, {2 * w} or {2 * w - 1}] to go "
            f"with x_low {list(x_low.shape)}, got {list(skip.shape)}"
        )
    _checks.mask(op, "mask_low", mask_low, "x_low", x_low, per_channel=False)
    _checks.mask(op, "mask_skip", mask_skip, "skip", skip, per_channel=False)
    _checks.odd_square(op, "weight", weight, x_low.shape[1] + skip.shape[1], "x_low", x_low)
    if bias is not None:
        _checks.vector(op, "bias", bias, weight.shape[0], "x_low", x_low)
    return x_low, mask_low, skip, mask_skip, weight, bias


def call(
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Call:
    """An up-sampled source and one of the output's size, one branch."""
    sources = (Source(x_low, mask_low, up=True), Source(skip, mask_skip))
    biases = () if bias is None else (bias,)
    geometry = centred(weight.shape[2], (1, 1))
    return Call("upcat_partial_conv2d", sources, (weight,), biases, None, geometry)


#: x_low [N, C1, h, w], mask_low [N or 1, 1, h, w], skip [N, C2, H, W], mask_skip [N or 1, 1, H, W],
#: weight [C_out, C1 + C2, k, k]
OPERATOR = Operator(
    "upcat_partial_conv2d",
    "Tensor x_low, Tensor? mask_low, Tensor skip, Tensor? mask_skip, Tensor weight, Tensor? bias",
    features=("x_low", "skip"),
    parameters=("weight", "bias"),
    call=call,
    unsaved=("bias",),
)
