"""Gradients of every operator, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pconv_ext.ops.call import Call, Gradients, Needs

from . import few_inputs_gradients, few_outputs_gradients, plain, upsampled, wgrad
from .forward import output_rows
from .gradients import ScaledGradient, scale_gradient
from .problem import Problem, Source, like_weights, problem, share
from .rows import Windows
from .weights import Partial, finish, finish_blocks


class _Weights:
    """Gradients of the weights, and the products <W_b, G_b> that those of the scales need."""

    def __init__(self, p: Problem, scales: Tensor | None) -> None:
        self.p, self.scales = p, scales
        self.grads = like_weights(p.call.weights)
        self.products: Tensor | None = None
        if scales is not None:
            shape = (len(p.branches), finish_blocks(p.sources[0].channels, p.branches[-1]), p.c_out)
            self.products = torch.zeros(shape, dtype=torch.float32, device=scales.device)

    def add(self, source: Source, partial: Partial, *, folded: bool) -> None:
        """The share of `source`; `folded`: the sums are over the taps of a low-resolution map."""
        p = self.p
        for b, branch in enumerate(p.branches):
            weight, grad = p.call.weights[branch.number].contiguous(), self.grads[branch.number]
            finish(
                partial, b, branch, p.window[1], share(weight, p, source), share(grad, p, source),
                source.channels, self.scales, self.products,
                low=folded, cut=upsampled.cut(p) if folded else (0, 0),
            )  # fmt: skip


def backward(call: Call, grad_out: Tensor, needs: Needs) -> Gradients:
    """Those of `needs`; features may be channels-last whatever the layout of the call."""
    p = problem(call)
    scales = None if call.scales is None else call.scales.contiguous()
    grads, sums, weights = _by_source(p, scales, grad_out, needs.sources, needs.weights or needs.scales)
    return Gradients(
        grads,
        weights.grads if weights and needs.weights else (),
        _biases(call, sums) if needs.biases else (),
        _scales(call, sums, weights.products) if weights and needs.scales else None,
    )


_BySource = tuple[list[Tensor | None], Tensor, _Weights | None]


def _by_source(
    p: Problem, scales: Tensor | None, grad_out: Tensor, needs: Sequence[bool], needs_weights: bool
) -> _BySource:
    """Gradients of the features that `needs` names, sum [C_out] of `grad_out` over live pixels, weights."""
    plans = [few_outputs_gradients.plan(p, source, needs_weights=needs_weights) for source in p.sources]
    if all(plans):
        return _few_outputs(p, plans, grad_out, needs, needs_weights)
    if needs_weights and not any(needs) and (plan := few_inputs_gradients.plan(p)):
        partial, sums = few_inputs_gradients.partials(p, grad_out, plan)
        weights = _Weights(p, scales)
        weights.add(p.sources[0], partial, folded=False)
        return [None], sums, weights
    windows, row, _ = output_rows(p, wgrad.MAX_BLOCK_DEPTH)
    grad = scale_gradient(
        grad_out, windows, p.largest_ratio, for_features=any(needs), for_weights=needs_weights
    )
    grads = [
        _adjoint(p, source, scales, grad, windows) if need else None
        for source, need in zip(p.sources, needs, strict=True)
    ]
    if not needs_weights:
        return grads, grad.sums, None
    weights = _Weights(p, scales)
    for source in p.sources:
        partial = wgrad.partials(p, source, row, grad)
        weights.add(source, partial, folded=source.up)
        del partial  # before that of the next source is made
    return grads, grad.sums, weights


def _few_outputs(
    p: Problem, plans: list[Any], grad_out: Tensor, needs: Sequence[bool], needs_weights: bool
) -> _BySource:
    """`_by_source` with few output channels, one launch for each source."""
    weights = _Weights(p, None) if needs_weights else None
    grads: list[Tensor | None] = [None] * len(p.sources)
    sums: Tensor | None = None
    for source, plan, needs_x in zip(p.sources, plans, needs, strict=True):
        if sums is not None and not (needs_x or needs_weights):
            continue
        found = few_outputs_gradients.gradients(p, source, grad_out, plan, needs_x=needs_x)
        grads[source.number] = found.x
        sums = found.sums if sums is None else sums
        if weights and found.weights is not None:
            weights.add(source, found.weights, folded=False)
    assert sums is not None
    return grads, sums, weights


def _adjoint(
    p: Problem, source: Source, scales: Tensor | None, grad: ScaledGradient, windows: Windows
) -> Tensor:
    if source.up:
        return upsampled.adjoint(p, source, grad, windows)
    return plain.adjoint(p, source, scales, grad, windows)


def _biases(call: Call, sums: Tensor) -> list[Tensor]:
    """One for each branch."""
    dtype = call.like.dtype
    if call.scales is None:
        return [sums.to(dtype)]
    return [row.clone() for row in (call.scales * sums).to(dtype)]


def _scales(call: Call, sums: Tensor, products: Tensor | None) -> Tensor:
    assert products is not None
    total = products.sum(1)
    if call.biases:
        total = total + torch.stack(list(call.biases)) * sums
    return total.to(call.like.dtype)
