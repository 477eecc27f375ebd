"""The implementations of the ``pconv_ext_triton`` operators; schemas and meaning are in pconv_ext/ops."""

from __future__ import annotations

import torch
from torch import Tensor

from pconv_ext._geometry import memory_format

from . import conv, launch, upcat


def _like(result: Tensor, like: Tensor) -> Tensor:
    """`result` in the layout of `like` (the kernels write channels-last)."""
    return result.contiguous(memory_format=memory_format(like))


def _none(like: Tensor) -> Tensor:
    return like.new_empty([0], dtype=torch.float32)


def partial_conv2d(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Forward of ``partial_conv2d`` without groups."""
    with launch.on(x.device):
        p = conv.problem(x, [weight], stride, padding, dilation)
        out, new_mask = conv.forward(x, mask, [weight], bias, None, p)
        return _like(out, x), new_mask


def partial_conv2d_backward(
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
    """Gradients of x, weight and bias."""
    with launch.on(x.device):
        p = conv.problem(x, [weight], stride, padding, dilation)
        grads = conv.backward(grad_out, x, mask, [weight], None, p, needs_x=needs[0], needs_weights=needs[1])
        return (
            _none(x) if grads.x is None else _like(grads.x, x),
            _none(x) if grads.weights is None else grads.weights[0],
            grads.sums.to(x.dtype) if needs[2] else _none(x),
        )


def _padding(weights: list[Tensor]) -> list[int]:
    return [max(weight.shape[2] for weight in weights) // 2] * 4


def msfef(
    x: Tensor,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    scales: Tensor,
    stride: list[int],
) -> tuple[Tensor, Tensor]:
    """Forward of ``msfef``."""
    with launch.on(x.device):
        p = conv.problem(x, weights, stride, _padding(weights), [1, 1])
        scales = scales.contiguous()
        out, new_mask = conv.forward(x, mask, weights, launch.fold_bias(biases, scales), scales, p)
        return _like(out, x), new_mask


def msfef_backward(
    grad_out: Tensor,
    x: Tensor,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    scales: Tensor,
    stride: list[int],
    needs: list[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Gradients of x, weights, biases and scales."""
    needs_x, needs_weights, needs_biases, needs_scales = needs
    with launch.on(x.device):
        p = conv.problem(x, weights, stride, _padding(weights), [1, 1])
        grads = conv.backward(
            grad_out, x, mask, weights, scales.contiguous(), p,
            needs_x=needs_x, needs_weights=needs_weights or needs_scales,
        )  # fmt: skip
        grad_biases = []
        if needs_biases:
            grad_biases = [row.clone() for row in (scales * grads.sums).to(x.dtype)]
        grad_scales = _none(x)
        if needs_scales and grads.products is not None:
            total = grads.products
            if biases:
                total = total + torch.stack(biases) * grads.sums
            grad_scales = total.to(x.dtype)
        return (
            _none(x) if grads.x is None else _like(grads.x, x),
            grads.weights if needs_weights and grads.weights is not None else [],
            grad_biases,
            grad_scales,
        )


def upcat_partial_conv2d(
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Forward of ``upcat_partial_conv2d``."""
    with launch.on(skip.device):
        out, new_mask = upcat.forward(x_low, mask_low, skip, mask_skip, weight, bias)
        return _like(out, skip), new_mask


def upcat_partial_conv2d_backward(
    grad_out: Tensor,
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x_low, skip, weight and bias."""
    with launch.on(skip.device):
        grads = upcat.backward(
            grad_out, x_low, mask_low, skip, mask_skip, weight,
            needs_low=needs[0], needs_skip=needs[1], needs_weight=needs[2],
        )  # fmt: skip
        return (
            _none(skip) if grads.low is None else _like(grads.low, x_low),
            _none(skip) if grads.skip is None else _like(grads.skip, skip),
            _none(skip) if grads.weight is None else grads.weight,
            grads.sums.to(skip.dtype) if needs[3] else _none(skip),
        )
