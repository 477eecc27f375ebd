"""``partial_conv2d`` and ``msfef``: one or several kernels over one feature map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import (
    few_inputs,
    few_inputs_gradients,
    few_outputs,
    few_outputs_gradients,
    launch,
    launch_gradients,
    lists,
    plan,
)
from .kernel_set import current
from .launch import Source
from .lists import Entries, Plane, RowList, Windows, empty_mask
from .plan import Branch, Taps


class Problem(NamedTuple):
    """Shapes of one call."""

    n: int
    c_in: int
    h: int
    w: int
    c_out: int
    ho: int
    wo: int
    stride: list[int]
    padding: tuple[int, int]  # top, left, of the largest kernel
    dilation: list[int]
    parts: tuple[Branch, ...]

    @property
    def pixels(self) -> int:
        """Of the output."""
        return self.n * self.ho * self.wo


def problem(
    x: Tensor, weights: list[Tensor], stride: list[int], padding: list[int], dilation: list[int]
) -> Problem:
    """`padding` [top, bottom, left, right] of the largest kernel."""
    n, c_in, h, w = x.shape
    c_out = weights[0].shape[0]
    parts = plan.branches([(weight.shape[2], weight.shape[3]) for weight in weights], c_out, c_in)
    top, bottom, left, right = padding
    ho = (h + top + bottom - dilation[0] * (parts[-1].kh - 1) - 1) // stride[0] + 1
    wo = (w + left + right - dilation[1] * (parts[-1].kw - 1) - 1) // stride[1] + 1
    return Problem(n, c_in, h, w, c_out, ho, wo, stride, (top, left), dilation, parts)


def pack(
    weights: list[Tensor], scales: Tensor | None, p: Problem, taps: Taps, block_n: int, *, adjoint: bool
) -> launch.Packed:
    """The weights of all branches, laid out for `taps`."""
    if len(weights) == 1:
        flat = weights[0].contiguous().view(-1)
    else:
        flat = torch.cat([weights[part.row].reshape(-1) for part in p.parts])
    return launch.pack(flat, scales, p.parts, taps, p.c_out, p.c_in, p.c_in, 1, block_n, adjoint=adjoint)


def features(x: Tensor) -> Source:
    """`x` in channels-last storage; with few channels, filled up to a power of two of them."""
    c, w = x.shape[1], x.shape[3]
    pitch = plan.row_channels(c)
    if pitch and pitch != c:
        return Source(
            torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, pitch - c)).contiguous(), c, pitch, w, 1
        )
    return Source(x.contiguous(memory_format=torch.channels_last), c, c, w, 1)


def windows(
    p: Problem, mask: Tensor | None, x: Tensor, taps: Taps, pad: int
) -> tuple[Windows, RowList, Tensor]:
    """Row list of the output pixels, ratios and new mask."""
    plane = Plane.of(mask, x)
    device = x.device
    ratio = torch.empty((len(p.parts), p.pixels), dtype=torch.float32, device=device)
    natural = torch.empty(p.pixels, dtype=torch.int8, device=device)
    new_mask, stored = empty_mask((p.n, 1, p.ho, p.wo), mask, x)

    def fill(grid: tuple[int, int], entries: Entries, block: int) -> None:
        current().forward_windows[grid](
            plane.data, stored, ratio, natural, *entries[:4],
            p.n, p.h, p.w, p.ho, p.wo, entries.q, entries.n_blocks, *p.padding, *plane.strides,
            KERNELS=tuple(part[:4] for part in p.parts), SH=p.stride[0], SW=p.stride[1],
            DH=p.dilation[0], DW=p.dilation[1], MASK=plane.kind, WORDS=taps.words, BLOCK=block,
        )  # fmt: skip

    row = lists.row_list(device, p.pixels, 1, 2, taps.words, pad, fill)
    return Windows(ratio, natural), row, new_mask


def forward(
    x: Tensor,
    mask: Tensor | None,
    weights: list[Tensor],
    bias: Tensor | None,
    scales: Tensor | None,
    p: Problem,
) -> tuple[Tensor, Tensor]:
    """bias [C_out] (folded) or None, scales [branches, C_out] or None (all one). Returns out, new_mask."""
    last = p.parts[-1]
    if scales is None and few_outputs.fits(p.c_out, last.kh, last.kw, p.stride, p.dilation):
        return few_outputs.forward([few_outputs.Map(x, mask)], x, weights[0], bias, (p.ho, p.wo), p.padding)
    taps = plan.forward_taps(p.parts, p.dilation)
    if few_inputs.fits(x, mask, p):
        packed = pack(weights, scales, p, taps, few_inputs.BLOCK_N, adjoint=False)
        return few_inputs.forward(x, mask, packed, bias, p, taps)
    blocks = launch.gather_blocks(p.pixels, p.c_out, x)
    window, row, new_mask = windows(p, mask, x, taps, blocks.m)
    packed = pack(weights, scales, p, taps, blocks.n, adjoint=False)
    out = launch.empty_features((p.n, p.c_out, p.ho, p.wo), x)
    launch.matmul(
        row, [(features(x), taps, packed)], out, p.c_out, blocks,
        ratio=window.ratio, pixels=p.pixels, bias=bias,
    )  # fmt: skip
    return out, new_mask


class Gradients(NamedTuple):
    """None where not needed."""

    x: Tensor | None
    weights: list[Tensor] | None
    sums: Tensor  # [C_out] float32: of grad_out over live pixels
    products: Tensor | None  # [branches, C_out] float32: <W_b, G_b>, with scales


def backward(
    grad_out: Tensor,
    x: Tensor,
    mask: Tensor | None,
    weights: list[Tensor],
    scales: Tensor | None,
    p: Problem,
    *,
    needs_x: bool,
    needs_weights: bool,
) -> Gradients:
    """Gradients of `forward`; those of bias and scales follow from sums and products."""
    last = p.parts[-1]
    if scales is None and few_outputs_gradients.fits(p.c_out, last.kh, last.kw, p.stride, p.dilation):
        return few_outputs_backward(grad_out, x, mask, weights[0], p, needs_x, needs_weights)
    if needs_weights and not needs_x and few_inputs_gradients.fits(x, mask, p):
        partial, sums = few_inputs_gradients.partials(grad_out, x, mask, p)
        grads, products = finish(partial, weights, scales, p)
        return Gradients(None, grads, sums, products)
    taps = plan.forward_taps(p.parts, p.dilation)
    wide = launch_gradients.MAX_BLOCK_DEPTH
    window, row, _ = windows(p, mask, x, taps, wide)
    largest = p.parts[-1].kh * p.parts[-1].kw
    grad = launch_gradients.scale_gradient(
        grad_out, window, largest, for_features=needs_x, for_weights=needs_weights
    )
    grad_x = adjoint(grad, x, mask, weights, scales, window, p) if needs_x else None
    if not needs_weights:
        return Gradients(grad_x, None, grad.sums, None)
    partial = launch_gradients.weight_partials(row, features(x), 0, 0, grad, taps, p.parts, shared=True)
    grads, products = finish(partial, weights, scales, p)
    return Gradients(grad_x, grads, grad.sums, products)


def finish(
    partial: launch_gradients.Partial, weights: list[Tensor], scales: Tensor | None, p: Problem
) -> tuple[list[Tensor], Tensor | None]:
    """Gradients of all weights, and the products."""
    grads = [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights]
    products = None
    if scales is not None:
        blocks_f = launch_gradients.finish_blocks(p.c_in, p.parts[-1])
        shape = (len(p.parts), blocks_f, p.c_out)
        products = torch.zeros(shape, dtype=torch.float32, device=partial.data.device)
    for b, part in enumerate(p.parts):
        launch_gradients.finish(
            partial, b, part, p.parts[-1].kw, weights[part.row].contiguous(), grads[part.row], p.c_in, p.c_in,
            scales, products,
        )  # fmt: skip
    return grads, None if products is None else products.sum(1)


def few_outputs_backward(
    grad_out: Tensor,
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    p: Problem,
    needs_x: bool,
    needs_weights: bool,
) -> Gradients:
    """`backward` of one kernel with few output channels, in one launch."""
    weight = weight.contiguous()
    share = few_outputs_gradients.backward(
        grad_out, [few_outputs.Map(x, mask)], 0, weight, p.padding,
        needs_x=needs_x, needs_weights=needs_weights,
    )  # fmt: skip
    if share.weights is None:
        return Gradients(share.x, None, share.sums, None)
    grad = torch.empty_like(weight, memory_format=torch.contiguous_format)
    part = p.parts[0]
    launch_gradients.finish(share.weights, 0, part, part.kw, weight, grad, p.c_in, p.c_in)
    return Gradients(share.x, [grad], share.sums, None)


def adjoint(
    grad: launch_gradients.ScaledGradient,
    x: Tensor,
    mask: Tensor | None,
    weights: list[Tensor],
    scales: Tensor | None,
    window: Windows,
    p: Problem,
) -> Tensor:
    """Gradient of x, channels-last."""
    taps = plan.adjoint_taps(p.parts, p.stride, p.padding, p.dilation)
    blocks = launch.gather_blocks(p.n * p.h * p.w, p.c_in, x)
    row = adjoint_rows(p, mask, x, window, taps, blocks.m)
    packed = pack(weights, scales, p, taps, blocks.n, adjoint=True)
    grad_x = launch.empty_features(tuple(x.shape), x)
    source = Source(grad.copies, p.c_out, grad.pitch, p.wo, -1, p.pixels * grad.pitch)
    launch.matmul(row, [(source, taps, packed)], grad_x, p.c_in, blocks, unscale=grad.unscale)
    return grad_x


def adjoint_rows(
    p: Problem, mask: Tensor | None, x: Tensor, window: Windows, taps: Taps, pad: int
) -> RowList:
    """Row list of the input pixels, by residue modulo the stride."""
    plane = Plane.of(mask, x)
    sh, sw = p.stride
    last = p.parts[-1]
    reach = p.parts[-2][:4] if len(p.parts) > 1 else ()
    pixels = p.n * -(-p.h // sh) * -(-p.w // sw)

    def fill(grid: tuple[int, int], entries: Entries, block: int) -> None:
        current().adjoint_windows[grid](
            plane.data, window.state, *entries[:4],
            p.n, p.h, p.w, p.ho, p.wo, entries.q, entries.n_blocks, *p.padding, *plane.strides,
            FIRST_Y=taps.y.first, FIRST_X=taps.x.first, STEP_Y=taps.y.step, STEP_X=taps.x.step,
            JUMP_Y=taps.y.jump, JUMP_X=taps.x.jump, KH=last.kh, KW=last.kw, NY=taps.y.taps, NX=taps.x.taps,
            REACH=reach, SH=sh, SW=sw, DH=p.dilation[0], DW=p.dilation[1], MASK=plane.kind,
            WORDS=taps.words, BLOCK=block,
        )  # fmt: skip

    return lists.row_list(x.device, pixels, sh * sw, 2, taps.words, pad, fill)
