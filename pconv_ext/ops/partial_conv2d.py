"""``partial_conv2d`` under the dispatcher. Formula: `pconv_ext.reference.partial_conv2d`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _checks
from .._geometry import Geometry, IntOrPair, Padding
from ._operator import Operator
from .call import Call, Source


def check(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: Padding,
    dilation: IntOrPair,
    groups: int,
) -> tuple[Any, ...]:
    """The operator's arguments, from those of the public function; else TypeError or ValueError."""
    op = "partial_conv2d"
    _checks.features(op, "x", x)
    _checks.mask(op, "mask", mask, "x", x, per_channel=True)
    _checks.tensor(op, "weight", weight, "[C_out, C_in / groups, kh, kw]", 4)
    _checks.like(op, "weight", weight, "x", x)
    (_, c_in, h, w), (c_out, c_group, kh, kw) = x.shape, weight.shape
    groups = _checks.integer(op, "groups", groups)
    if groups < 1 or c_in % groups or c_out % groups:
        raise ValueError(
            f"{op}: groups must divide C_in = {c_in} of x and C_out = {c_out} of weight, got {groups}"
        )
    if c_out < 1 or kh < 1 or kw < 1 or c_group != c_in // groups:
        raise ValueError(
            f"{op}: weight must have shape [C_out, {c_in // groups}, kh, kw] to go with x "
            f"{list(x.shape)} and groups={groups}, got {list(weight.shape)}"
        )
    if bias is not None:
        _checks.vector(op, "bias", bias, c_out, "x", x)
    strides = _checks.pair(op, "stride", stride, 1)
    dilations = _checks.pair(op, "dilation", dilation, 1)
    top, bottom, left, right = paddings = _checks.padding(op, padding, (kh, kw), strides, dilations)
    height, width = h + top + bottom, w + left + right
    if height <= dilations[0] * (kh - 1) or width <= dilations[1] * (kw - 1):
        raise ValueError(
            f"{op}: x padded to {height} x {width} must be at least as large as the "
            f"window of weight, {dilations[0] * (kh - 1) + 1} x {dilations[1] * (kw - 1) + 1}"
        )
    if mask is not None and mask.shape[1] > 1 and mask.stride(1) == 0:
        mask = mask[:, :1]  # an expanded plane, as PartialConv2d(multi_channel=True) returns: same ratios
    return x, mask, weight, bias, _checks.bounded(strides, height, width), paddings, dilations, groups


def call(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Call:
    """One source, one branch."""
    geometry = Geometry(stride, padding, dilation, groups)
    biases = () if bias is None else (bias,)
    return Call("partial_conv2d", (Source(x, mask),), (weight,), biases, None, geometry)


#: x [N, C, H, W], mask [N or 1, 1 or C, H, W], stride [2], padding [top, bottom, left, right], dilation [2]
OPERATOR = Operator(
    "partial_conv2d",
    "Tensor x, Tensor? mask, Tensor weight, Tensor? bias, "
    "int[] stride, int[] padding, int[] dilation, int groups",
    features=("x",),
    parameters=("weight", "bias"),
    call=call,
    unsaved=("bias",),
)
