"""``msfef`` under the dispatcher. Formula: `pconv_ext.reference.msfef`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._geometry import centred, memory_format
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

NAME = "msfef"
#: x [N, C, H, W], mask [N or 1, 1, H, W], weights n x [C_out, C, k_i, k_i] in any order of k_i,
#: biases n x [C_out] or empty, scales [n, C_out], stride [2]
SCHEMA = (
    "(Tensor x, Tensor? mask, Tensor[] weights, Tensor[] biases, Tensor scales, int[] stride)"
    " -> (Tensor, Tensor)"
)
#: needs = [x, weights, biases, scales]; what is not needed comes back as an empty list or as float32 [0]
BACKWARD_SCHEMA = (
    "(Tensor grad_out, Tensor x, Tensor? mask, Tensor[] weights, Tensor[] biases, Tensor scales,"
    " int[] stride, bool[] needs) -> (Tensor, Tensor[], Tensor[], Tensor)"
)


def fake(
    x: Tensor,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    scales: Tensor,
    stride: list[int],
) -> tuple[Tensor, Tensor]:
    n, _, h, w = x.shape
    size = centred(1, stride).output_size(h, w, [1, 1])  # that of every odd kernel with padding k // 2
    out = torch.empty(
        (n, weights[0].shape[0], *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )
    return out, x.new_empty((n, 1, *size), dtype=x.dtype if mask is None else mask.dtype)


def fake_backward(
    grad_out: Tensor,
    x: Tensor,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    scales: Tensor,
    stride: list[int],
    needs: list[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    return (
        fake_feature_gradient(x, needs[0]),
        [weight.new_empty(weight.shape) for weight in weights] if needs[1] else [],
        [bias.new_empty(bias.shape) for bias in biases] if needs[2] else [],
        fake_parameter_gradient(scales, scales.shape, needs[3]),
    )


class MSFEFFunction(torch.autograd.Function):
    """Saves x, the mask as given and the parameters; no branch output exists to be saved.

    Autograd sees tensors only outside of lists, so weights and biases come flat, last: n weights, then 0 or
    n biases.
    """

    @staticmethod
    def forward(
        ctx: Any,
        operator: Operator,
        x: Tensor,
        mask: Any,
        scales: Tensor,
        stride: list[int],
        n: int,
        *parameters: Tensor,
    ) -> Any:
        with below_autograd():
            out, new_mask = operator.forward(x, mask, parameters[:n], parameters[n:], scales, stride)
        ctx.save_for_backward(x, mask, scales, *parameters)
        ctx.operator, ctx.stride, ctx.n = operator, stride, n
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(new_mask)
        return out, new_mask

    @staticmethod
    def _backward(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Any, ...]:
        if grad_out is None:
            return (None,) * len(ctx.needs_input_grad)
        _, needs_x, _, needs_scales, _, _, *flat = ctx.needs_input_grad
        n = ctx.n
        x, mask, scales, *parameters = ctx.saved_tensors
        needs = [needs_x, any(flat[:n]), any(flat[n:]), needs_scales]
        grad_x, grad_weights, grad_biases, grad_scales = ctx.operator.backward(
            grad_out, x, mask, parameters[:n], parameters[n:], scales, ctx.stride, needs
        )
        # a group that is not needed at all comes back empty
        grads = [*(grad_weights or [None] * n), *(grad_biases or [None] * (len(flat) - n))]
        return (
            None,
            grad_x if needs_x else None,
            None,
            grad_scales if needs_scales else None,
            None,
            None,
            *(grad if need else None for grad, need in zip(grads, flat, strict=True)),
        )

    backward = staticmethod(once_differentiable(NAME, _backward))


def register(library: torch.library.Library) -> None:
    """Define the operator and its backward in the namespace of `library`."""
    operator = Operator(
        define(library, NAME, SCHEMA, fake),
        define(library, NAME + "_backward", BACKWARD_SCHEMA, fake_backward),
    )

    def autograd(
        x: Tensor,
        mask: Tensor | None,
        weights: list[Tensor],
        biases: list[Tensor],
        scales: Tensor,
        stride: list[int],
    ) -> Any:
        if wants_grad(x, scales, *weights, *biases):
            return MSFEFFunction.apply(operator, x, mask, scales, stride, len(weights), *weights, *biases)
        with below_autograd():
            return operator.forward(x, mask, weights, biases, scales, stride)

    def cast(
        to: Any,
        x: Tensor,
        mask: Any,
        weights: list[Tensor],
        biases: list[Tensor],
        scales: Tensor,
        stride: list[int],
    ) -> tuple[Any, ...]:
        return (
            to(x),
            mask,
            [to(weight) for weight in weights],
            [to(bias) for bias in biases],
            to(scales),
            stride,
        )

    register_autograd(library, NAME, autograd)
    register_autocast(library, operator.forward, cast)
