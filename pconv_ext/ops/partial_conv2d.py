"""``partial_conv2d`` under the dispatcher. Formula: `pconv_ext.reference.partial_conv2d`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._geometry import Geometry, memory_format
from ._library import (
    Operator,
    below_autograd,
    define,
    fake_feature_gradient,
    fake_parameter_gradient,
    once_differentiable,
    register_autocast,
    register_autograd,
    wants_grad,
)

NAME = "partial_conv2d"
#: x [N, C, H, W], mask [N or 1, 1 or C, H, W], stride [2], padding [top, bottom, left, right], dilation [2]
SCHEMA = (
    "(Tensor x, Tensor? mask, Tensor weight, Tensor? bias,"
    " int[] stride, int[] padding, int[] dilation, int groups) -> (Tensor, Tensor)"
)
#: needs = [x, weight, bias]; a gradient that is not needed comes back as float32 [0]
BACKWARD_SCHEMA = (
    "(Tensor grad_out, Tensor x, Tensor? mask, Tensor weight,"
    " int[] stride, int[] padding, int[] dilation, int groups, bool[] needs) -> (Tensor, Tensor, Tensor)"
)


def fake(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    n, _, h, w = x.shape
    size = Geometry(stride, padding, dilation, groups).output_size(h, w, weight.shape[2:])
    out = torch.empty(
        (n, weight.shape[0], *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )
    return out, x.new_empty((n, 1, *size), dtype=x.dtype if mask is None else mask.dtype)


def fake_backward(
    grad_out: Tensor,
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        fake_feature_gradient(x, needs[0]),
        fake_parameter_gradient(weight, weight.shape, needs[1]),
        fake_parameter_gradient(weight, weight.shape[:1], needs[2]),
    )


class PartialConv2dFunction(torch.autograd.Function):
    """Saves what the gradient needs and nothing else: x, the mask as given, the weight."""

    @staticmethod
    def forward(
        ctx: Any, operator: Operator, x: Tensor, mask: Any, weight: Tensor, bias: Any, *geometry: Any
    ) -> Any:
        with below_autograd():
            out, new_mask = operator.forward(x, mask, weight, bias, *geometry)
        ctx.save_for_backward(x, mask, weight)
        ctx.operator, ctx.geometry = operator, geometry
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(new_mask)
        return out, new_mask

    @staticmethod
    def _backward(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Any, ...]:
        _, needs_x, _, needs_weight, needs_bias, *rest = ctx.needs_input_grad
        if grad_out is None:
            return (None,) * len(ctx.needs_input_grad)
        needs = [needs_x, needs_weight, needs_bias]
        x, mask, weight = ctx.saved_tensors
        grads = ctx.operator.backward(grad_out, x, mask, weight, *ctx.geometry, needs)
        grad_x, grad_weight, grad_bias = (
            grad if need else None for grad, need in zip(grads, needs, strict=True)
        )
        return None, grad_x, None, grad_weight, grad_bias, *(None for _ in rest)

    backward = staticmethod(once_differentiable(NAME, _backward))


def register(library: torch.library.Library) -> None:
    """Define the operator and its backward in the namespace of `library`."""
    operator = Operator(
        define(library, NAME, SCHEMA, fake),
        define(library, NAME + "_backward", BACKWARD_SCHEMA, fake_backward),
    )

    def autograd(x: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Any:
        if wants_grad(x, weight, bias):
            return PartialConv2dFunction.apply(operator, x, mask, weight, bias, *geometry)
        with below_autograd():
            return operator.forward(x, mask, weight, bias, *geometry)

    def cast(to: Any, x: Tensor, mask: Any, weight: Tensor, bias: Any, *geometry: Any) -> tuple[Any, ...]:
        return to(x), mask, to(weight), to(bias), *geometry

    register_autograd(library, NAME, autograd)
    register_autocast(library, operator.forward, cast)
