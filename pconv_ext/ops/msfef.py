"""``msfef`` under the dispatcher. Formula: `pconv_ext.reference.msfef`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _checks
from .._geometry import IntOrPair, centred
from ._operator import Operator
from .call import Call, Source


def check(
    x: Tensor,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    scales: Tensor,
    stride: IntOrPair,
) -> tuple[Any, ...]:
    """The operator's arguments, from those of the public function; else TypeError or ValueError."""
    op = "msfef"
    _checks.features(op, "x", x)
    _checks.mask(op, "mask", mask, "x", x, per_channel=False)
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"{op}: weights must be a list or tuple of tensors, got {type(weights).__name__}")
    if not weights:
        raise ValueError(f"{op}: weights must hold at least one kernel, got none")
    c_in = x.shape[1]
    for i, weight in enumerate(weights):
        _checks.odd_square(op, f"weights[{i}]", weight, c_in, "x", x)
    n, c_out = len(weights), weights[0].shape[0]
    sizes = [weight.shape[2] for weight in weights]
    if len(set(sizes)) != n:
        raise ValueError(f"{op}: weights must have distinct kernel sizes, got {sizes}")
    if any(weight.shape[0] != c_out for weight in weights):
        raise ValueError(f"{op}: weights must agree in C_out, got {[weight.shape[0] for weight in weights]}")
    if biases is not None:
        if not isinstance(biases, (list, tuple)):
            raise TypeError(
                f"{op}: biases must be a list or tuple of tensors or None, got {type(biases).__name__}"
            )
        if len(biases) != n:
            raise ValueError(f"{op}: biases must hold one tensor for each of {n} weights, got {len(biases)}")
        for i, bias in enumerate(biases):
            _checks.vector(op, f"biases[{i}]", bias, c_out, "x", x)
    _checks.tensor(op, "scales", scales, "[n, C_out]", 2)
    if scales.shape[0] != n or scales.shape[1] != c_out:
        raise ValueError(f"{op}: scales must have shape [{n}, {c_out}], got {list(scales.shape)}")
    _checks.like(op, "scales", scales, "x", x)
    strides = _checks.bounded(_checks.pair(op, "stride", stride, 1), x.shape[2], x.shape[3])
    return x, mask, weights, biases or [], scales, strides


def call(
    x: Tensor,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    scales: Tensor,
    stride: list[int],
) -> Call:
    """One source, a branch for each kernel size."""
    geometry = centred(max([weight.shape[2] for weight in weights]), stride)  # a list: half the time
    return Call("msfef", (Source(x, mask),), weights, biases, scales, geometry)


#: x [N, C, H, W], mask [N or 1, 1, H, W], weights n x [C_out, C, k_i, k_i] in any order of k_i,
#: biases n x [C_out] or empty, scales [n, C_out], stride [2]
OPERATOR = Operator(
    "msfef",
    "Tensor x, Tensor? mask, Tensor[] weights, Tensor[] biases, Tensor scales, int[] stride",
    features=("x",),
    parameters=("weights", "biases", "scales"),
    call=call,
)
