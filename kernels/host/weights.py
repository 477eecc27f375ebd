"""Launches of triton/weights.py: weights folded and laid out, and their gradients out of partial sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import tuning
from .kernel_set import current
from .sizes import power_of_two, rounded, row_channels, row_depth
from .taps import Branch, Taps


def fold_bias(biases: Sequence[Tensor], scales: Tensor | None) -> Tensor | None:
    """The sum of scales * biases [C_out] in float32; without scales the only bias, or None."""
    if not biases or scales is None:
        return biases[0] if biases else None
    n_out = scales.shape[1]
    total = torch.empty(n_out, dtype=torch.float32, device=scales.device)
    current().fold_bias[(-(-n_out // 256),)](
        biases=torch.stack(list(biases)), scales=scales, total=total, NOUT=n_out, N_BRANCHES=len(biases),
        BLOCK=256,
    )  # fmt: skip
    return total


def flat(weights: Sequence[Tensor], branches: tuple[Branch, ...]) -> Tensor:
    """One contiguous tensor of all weights, in the order of the branches; of one weight, itself."""
    if len(branches) == 1:
        return weights[0].contiguous()
    return torch.cat([weights[branch.number].reshape(-1) for branch in branches])


class Packed(NamedTuple):
    """Weights laid out for triton/gather.py, with the constants that go with them."""

    data: Tensor
    bk: int
    kp: int
    row_channels: int


def pack(
    weight: Tensor,
    scales: Tensor | None,
    branches: tuple[Branch, ...],
    taps: Taps,
    c_out: int,
    c_in: int,
    stride_out: int,
    slabs: int,
    rows: int,
    *,
    adjoint: bool,
) -> Packed:
    """Fold and lay out, in `rows` rows. `weight`: `slabs` weights of [C_out, stride_out, taps], end to end.

    The summed channels are c_in or, with `adjoint`, c_out.
    """
    summed = c_out if adjoint else c_in
    depth = row_depth(summed, taps.x.taps, weight.element_size())
    slab_stride = weight.numel() // slabs if slabs > 1 else 0
    common = {
        "weights": weight,
        "scales": weight if scales is None else scales,
        "stride_out": stride_out,
        "slab_stride": slab_stride,
        "NOUT": c_out,
        "CIN": c_in,
        "BRANCHES": tuple(map(tuple, branches)),
        "PASSES": tuple(map(tuple, taps.passes)),
        "NP": rows,
        "ADJOINT": adjoint,
        "HAS_SCALES": scales is not None,
    }
    if depth:
        few = row_channels(summed)
        segments = max(slabs, len(taps.y.first) * len(taps.x.first))
        slots = segments * len(taps.passes) * taps.y.taps
        data = weight.new_empty(slots * rows * depth)
        current().pack_rows[(-(-rows // 16), slots)](
            **common, packed=data, FIRST_Y=taps.y.first, FIRST_X=taps.x.first, STEP_Y=taps.y.step,
            STEP_X=taps.x.step, NY=taps.y.taps, NX=taps.x.taps, ROW_CHANNELS=few, KP=depth, BR=16,
        )  # fmt: skip
        return Packed(data, depth, depth, few)
    bk = tuning.channel_blocks(summed, weight.dtype)
    kp = rounded(summed, bk)
    data = weight.new_empty(slabs * taps.slots * rows * kp)
    block_t = power_of_two(max(one.kh * one.kw for one in taps.passes))
    block_k = max(16, min(bk, 2048 // block_t))
    current().pack_taps[(rows, -(-kp // block_k), slabs * len(taps.passes))](
        **common, packed=data, SLOTS=taps.slots, KP=kp, BT=block_t, BK=block_k, num_warps=8
    )
    return Packed(data, bk, kp, 0)


def fold_low(
    weight: Tensor, k: int, c_low: int, segments: int, cut: tuple[int, int], *, adjoint: bool
) -> Tensor:
    """Weights over a low-resolution map, flat [segments, C_out, C_low, taps]; see triton/weights.py."""
    c_out, stride_out = weight.shape[:2]
    slots = (k + 1) ** 2 if adjoint else ((k + 1) // 2) ** 2
    folded = weight.new_empty(segments * c_out * c_low * slots)
    block_t = power_of_two(k * k)
    block_c = max(1, min(power_of_two(c_low), 2048 // block_t))
    current().fold_low[(c_out, -(-c_low // block_c), segments)](
        weight=weight, folded_low=folded, C_LOW=c_low, stride_out=stride_out,
        K=k, CUT_H=cut[0], CUT_W=cut[1], ADJOINT=adjoint, SLOTS=slots, BC=block_c, BT=block_t,
    )  # fmt: skip
    return folded


class Partial(NamedTuple):
    """Partial sums of the gradient of the weights, and how they are laid out."""

    data: Tensor  # [splits, segments, slots, cp, pitch] float32
    own: tuple[int, ...]  # first slot of each branch at mixed pixels, -1 for none
    row_channels: int
    unscale: float


def finish(
    partial: Partial,
    b: int,
    branch: Branch,
    window_w: int,
    weight: Tensor,
    grad: Tensor,
    c_in: int,
    scales: Tensor | None = None,
    products: Tensor | None = None,
    *,
    low: bool = False,
    cut: tuple[int, int] = (0, 0),
) -> None:
    """Add up the partial sums of branch `b` into the first `c_in` input channels of `grad`.

    `weight` and `grad` [C_out, C, kh, kw] may lack their first input channels. `products` [branches,
    finish_blocks, C_out] takes <W, G> for the gradient of the scales. `low`, `cut`: of an up-sampled source.
    """
    splits, segments, slots, cp, pitch = partial.data.shape
    c_out = grad.shape[0]
    blocks_f = finish_blocks(c_in, branch)
    current().finish[(blocks_f, -(-c_out // 32))](
        partial=partial.data, weight=weight, scales=weight if scales is None else scales, grad=grad,
        scale_grad=grad if products is None else products, splits=splits,
        stride_out=grad.stride(0) // (branch.kh * branch.kw),
        blocks_f=blocks_f if products is None else products.shape[1], unscale=partial.unscale,
        NOUT=c_out, CIN=c_in, KH=branch.kh, KW=branch.kw, OY=branch.oy, OX=branch.ox, WINDOW_W=window_w,
        OWN=partial.own[b], SLOTS=slots, CP=cp, GRAD_PITCH=pitch,
        ROW_CHANNELS=partial.row_channels, SCALE_ROW=branch.number, HAS_SCALES=scales is not None, LOW=low,
        SEGMENTS=segments, CUT_H=cut[0], CUT_W=cut[1], BO=32, BF=64, num_warps=8,
    )  # fmt: skip


def finish_blocks(c_in: int, branch: Branch) -> int:
    """Programs of `finish` along input channels and taps."""
    return -(-c_in * branch.kh * branch.kw // 64)
