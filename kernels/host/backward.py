"""Gradients of every operator, step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pconv_ext.ops.call import Call, Gradients, Needs

from . import few_inputs_gradients, few_outputs_gradients, gather, plain, upsampled, wgrad
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
    weights = _Weights(p, scales) if needs.weights or needs.scales else None
    grads, sums = _by_source(p, scales, grad_out, needs, weights)
    return Gradients(
        grads,
        weights.grads if weights and needs.weights else (),
        _biases(call, sums) if needs.biases else (),
        _scales(call, sums, weights.products) if weights and needs.scales else None,
    )


def _by_source(
    p: Problem, scales: Tensor | None, grad_out: Tensor, needs: Needs, weights: _Weights | None
) -> tuple[list[Tensor | None], Tensor]:
    """Gradients of the features, and the sum [C_out] of `grad_out` over live pixels; fills `weights`."""
    plans = [few_outputs_gradients.plan(p, source, needs_weights=weights is not None) for source in p.sources]
    if all(plans):
        return _few_outputs(p, plans, grad_out, needs, weights)
    if weights and not any(needs.sources) and (plan := few_inputs_gradients.plan(p)):
        partial, sums = few_inputs_gradients.partials(p, grad_out, plan)
        weights.add(p.sources[0], partial, folded=False)
        return [None], sums
    windows, row, _ = output_rows(p, wgrad.MAX_BLOCK_DEPTH)
    grad = scale_gradient(
        grad_out, windows, p.largest_ratio,
        for_features=any(needs.sources), for_weights=weights is not None,
    )  # fmt: skip
    grads = [
        _adjoint(p, source, scales, grad, windows) if need else None
        for source, need in zip(p.sources, needs.sources, strict=True)
    ]
    for source in p.sources:
        if weights is None:
            break
        storage = gather.storage_of(source.x)
        partial = wgrad.partials(
            row, storage, source.number, source.word0, grad, source.taps, source.branches,
            shared=not source.up,
        )  # fmt: skip
        weights.add(source, partial, folded=source.up)
        del partial  # before that of the next source is made
    return grads, grad.sums


def _few_outputs(
    p: Problem, plans: list[Any], grad_out: Tensor, needs: Needs, weights: _Weights | None
) -> tuple[list[Tensor | None], Tensor]:
    """`_by_source` with few output channels, one launch for each source."""
    grads: list[Tensor | None] = [None] * len(p.sources)
    sums: Tensor | None = None
    for source, plan, needs_x in zip(p.sources, plans, needs.sources, strict=True):
        if sums is not None and not (needs_x or weights):
            continue
        share = few_outputs_gradients.gradients(
            p, source, grad_out, plan, needs_x=needs_x, needs_weights=weights is not None
        )
        grads[source.number] = share.x
        sums = share.sums if sums is None else sums
        if weights and share.weights is not None:
            weights.add(source, share.weights, folded=False)
    assert sums is not None
    return grads, sums


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
