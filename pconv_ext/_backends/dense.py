"""The dense backend: torch's own convolution of all branches merged, completed by the CPU engine.

With ratios r_1..r_n (ascending windows) and merged kernels M_i = V_1 + ... + V_i an output is ``r_n
conv(M_n) + sum_{i<n} (r_i - r_{i+1}) conv(M_i)``. The first convolution is torch's (oneDNN's where torch
has it) of a masked copy of the features. The sum has terms at cut windows alone, those with a hole or a
border in them: the engine computes these and scales what torch left there. Where r_n is large that would
scale torch's rounding too, so there the engine computes all. Calls that `_takes` leaves out are the
engine's alone.

What comes of torch is rounded to the dtype of the features, as are the merged weights: results in 16 bits
have the errors of a convolution in 16 bits, where those of backend "cpu" have that of one rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import ops
from .._geometry import memory_format
from ..ops.call import Call, Gradients, Needs
from . import cpu
from .backend import Backend


def _computes(dtype: torch.dtype) -> bool:
    """Whether torch has a convolution of this dtype that sums in float32; its fallback does not."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def _takes(call: Call) -> bool:
    """Whether torch's convolution has a part in `call`; the others are the CPU engine's alone.

    Those are concatenations, which it would have to copy, groups, masks by channel, float64, and 16 bits
    where oneDNN has none.
    """
    mask = call.sources[0].mask
    return (
        len(call.sources) == 1
        and _computes(call.like.dtype)
        and call.geometry.groups == 1
        and (mask is None or mask.shape[1] == 1)
    )


def _selected(call: Call) -> Tensor:
    """The features with 0 in holes; padded where torch's convolution would not pad so."""
    x, mask, _ = call.sources[0]
    layout = memory_format(x)
    if mask is not None:
        x = torch.where(mask if mask.dtype == torch.bool else mask != 0, x, 0)
    top, bottom, left, right = call.geometry.padding
    if top != bottom or left != right:
        x = torch.constant_pad_nd(x, [left, right, top, bottom])
    return x.contiguous(memory_format=layout)


def _convolution(call: Call) -> tuple[Any, ...]:
    """What torch's convolution is told after weight and bias."""
    (top, bottom, left, right), stride = call.geometry.padding, call.geometry.stride
    padding = [top, left] if top == bottom and left == right else [0, 0]
    return stride, padding, call.geometry.dilation, False, [0, 0], 1


def _merged(call: Call) -> Tensor:
    """sum_i a_i o W_i, each window in the middle of the largest."""
    if call.scales is None:
        return call.weights[0]
    merged: Tensor = torch.ops.pconv_ext.merge(call.weights, call.scales)
    return merged


def _bias(call: Call) -> Tensor | None:
    """sum_i a_i o b_i."""
    if not call.biases:
        return None
    if call.scales is None:
        return call.biases[0]
    return (torch.stack([*call.biases]).float() * call.scales.float()).sum(0).to(call.like.dtype)


def _forward(call: Call) -> tuple[Tensor, Tensor]:
    x, mask, _ = call.sources[0]
    out = torch.ops.aten.convolution(_selected(call), _merged(call), _bias(call), *_convolution(call))
    out = out.contiguous(memory_format=memory_format(x))
    new_mask = torch.ops.pconv_ext.complete_forward(
        out, x, mask, call.weights, call.biases, call.scales, *call.geometry
    )
    return out, new_mask


def _backward(call: Call, grad_out: Tensor, needs: Needs) -> Gradients:
    x, mask, _ = call.sources[0]
    layout = memory_format(x)
    dense_input = dense_weight = x.new_empty([0])
    needs_input, needs_weight = needs.sources[0], needs.weights or needs.scales
    if needs_input or needs_weight:
        windows = [weight[:1, :1] for weight in call.weights]  # sizes alone matter
        factors = torch.ops.pconv_ext.dense_factors(x, mask, windows, *call.geometry)
        scaled = torch.where(factors > 0, grad_out, 0).mul_(factors).contiguous(memory_format=layout)
        selected = _selected(call)
        dense_input, dense_weight, _ = torch.ops.aten.convolution_backward(
            scaled, selected, _merged(call), None, *_convolution(call), [needs_input, needs_weight, False]
        )
        if needs_input:
            top, _, left, _ = call.geometry.padding
            if selected.shape != x.shape:
                dense_input = dense_input.narrow(2, top, x.shape[2]).narrow(3, left, x.shape[3])
            dense_input = dense_input.contiguous(memory_format=layout)
    weights, biases, scales = torch.ops.pconv_ext.complete_backward(
        dense_input if needs_input else x.new_empty([0]),
        dense_weight if needs_weight else x.new_empty([0]),
        grad_out,
        x,
        mask,
        call.weights,
        call.biases,
        call.scales,
        *call.geometry,
        [needs_input, needs.weights, needs.biases, needs.scales],
    )
    return Gradients(
        [dense_input if needs_input else None], weights, biases, scales if needs.scales else None
    )


def _implementations(operator: ops.Operator) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`operator` and its backward. An empty batch computes nothing: sums over it are zero."""
    ours, ours_backward = (getattr(torch.ops.pconv_ext, name) for name in operator.names)

    def forward(*arguments: Any) -> Any:
        call = operator.call(*arguments)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if not _takes(call):
                return ours(*arguments)
            if call.like.shape[0] == 0:
                return tree_map_only(Tensor, Tensor.zero_, operator.fake(*arguments))
            return _forward(call)

    def backward(grad_out: Tensor, *saved: Any) -> Any:
        call = operator.backward_call(saved[:-1])
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if not _takes(call):
                return ours_backward(grad_out, *saved)
            if call.like.shape[0] == 0:
                return tree_map_only(Tensor, Tensor.zero_, operator.fake_backward(grad_out, *saved))
            return operator.results(_backward(call, grad_out, operator.needs(saved[-1])), call.like)

    return forward, backward


_library = ops.register("pconv_ext_dense")
for _operator in ops.OPERATORS.values():
    for _name, _kernel in zip(_operator.names, _implementations(_operator), strict=True):
        _library.impl(_name, _kernel, "CPU")
REASON = cpu.BACKEND.reason and "it needs backend 'cpu'"
BACKEND = Backend("cpu", torch.ops.pconv_ext_dense, REASON)
