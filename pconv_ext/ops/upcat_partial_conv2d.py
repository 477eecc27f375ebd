"""``upcat_partial_conv2d`` under the dispatcher. Formula: `pconv_ext.reference.upcat_partial_conv2d`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._geometry import memory_format
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

NAME = "upcat_partial_conv2d"
#: x_low [N, C1, h, w], mask_low [N or 1, 1, h, w], skip [N, C2, H, W], mask_skip [N or 1, 1, H, W],
#: weight [C_out, C1 + C2, k, k]
SCHEMA = (
    "(Tensor x_low, Tensor? mask_low, Tensor skip, Tensor? mask_skip, Tensor weight, Tensor? bias)"
    " -> (Tensor, Tensor)"
)
#: needs = [x_low, skip, weight, bias]; a gradient that is not needed comes back as float32 [0]
BACKWARD_SCHEMA = (
    "(Tensor grad_out, Tensor x_low, Tensor? mask_low, Tensor skip, Tensor? mask_skip, Tensor weight,"
    " bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)


def fake(
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    n, _, h, w = skip.shape
    out = torch.empty(
        (n, weight.shape[0], h, w), dtype=skip.dtype, device=skip.device, memory_format=memory_format(skip)
    )
    mask = mask_skip if mask_low is None else mask_low
    return out, skip.new_empty((n, 1, h, w), dtype=skip.dtype if mask is None else mask.dtype)


def fake_backward(
    grad_out: Tensor,
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        fake_feature_gradient(x_low, needs[0]),
        fake_feature_gradient(skip, needs[1]),
        fake_parameter_gradient(weight, weight.shape, needs[2]),
        fake_parameter_gradient(weight, weight.shape[:1], needs[3]),
    )


class UpcatPartialConv2dFunction(torch.autograd.Function):
    """Saves the two inputs with their masks as given, and the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        operator: Operator,
        x_low: Tensor,
        mask_low: Any,
        skip: Tensor,
        mask_skip: Any,
        weight: Tensor,
        bias: Any,
    ) -> Any:
        with below_autograd():
            out, new_mask = operator.forward(x_low, mask_low, skip, mask_skip, weight, bias)
        ctx.save_for_backward(x_low, mask_low, skip, mask_skip, weight)
        ctx.operator = operator
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(new_mask)
        return out, new_mask

    @staticmethod
    def _backward(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Any, ...]:
        if grad_out is None:
            return (None,) * 7
        _, needs_low, _, needs_skip, _, needs_weight, needs_bias = ctx.needs_input_grad
        needs = [needs_low, needs_skip, needs_weight, needs_bias]
        grads = ctx.operator.backward(grad_out, *ctx.saved_tensors, needs)
        grad_low, grad_skip, grad_weight, grad_bias = (
            grad if need else None for grad, need in zip(grads, needs, strict=True)
        )
        return None, grad_low, None, grad_skip, None, grad_weight, grad_bias

    backward = staticmethod(once_differentiable(NAME, _backward))


def register(library: torch.library.Library) -> None:
    """Define the operator and its backward in the namespace of `library`."""
    operator = Operator(
        define(library, NAME, SCHEMA, fake),
        define(library, NAME + "_backward", BACKWARD_SCHEMA, fake_backward),
    )

    def autograd(
        x_low: Tensor, mask_low: Any, skip: Tensor, mask_skip: Any, weight: Tensor, bias: Any
    ) -> Any:
        if wants_grad(x_low, skip, weight, bias):
            return UpcatPartialConv2dFunction.apply(operator, x_low, mask_low, skip, mask_skip, weight, bias)
        with below_autograd():
            return operator.forward(x_low, mask_low, skip, mask_skip, weight, bias)

    def cast(
        to: Any, x_low: Tensor, mask_low: Any, skip: Tensor, mask_skip: Any, weight: Tensor, bias: Any
    ) -> tuple[Any, ...]:
        return to(x_low), mask_low, to(skip), mask_skip, to(weight), to(bias)

    register_autograd(library, NAME, autograd)
    register_autocast(library, operator.forward, cast)
