"""``upcat_partial_conv2d``: the decoder stage, which reads its two maps where they are.

Over the low-resolution map the k x k taps of an up-sampled pixel fall on (k + 1) / 2 squared pixels: their
weights are summed beforehand, for each parity of the pixel, so 9 taps cost 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import conv, few_outputs, few_outputs_gradients, launch, launch_gradients, lists, plan
from .kernel_set import current
from .launch import Source
from .lists import Entries, Plane, RowList, Windows, empty_mask


class Problem(NamedTuple):
    """Shapes of one call."""

    n: int
    c_low: int
    c_skip: int
    lh: int
    lw: int
    h: int
    w: int
    c_out: int
    k: int

    @property
    def pixels(self) -> int:
        """Of the output."""
        return self.n * self.h * self.w

    @property
    def largest_ratio(self) -> int:
        """Of a window with a single valid entry."""
        return -(-(self.c_low + self.c_skip) * self.k * self.k // min(self.c_low, self.c_skip))

    @property
    def cut(self) -> tuple[int, int]:
        """Last rows and columns whose windows an odd size cuts between two copies of a low pixel."""
        return (min(self.k // 2, self.h) if self.h % 2 else 0, min(self.k // 2, self.w) if self.w % 2 else 0)

    @property
    def low_cut(self) -> tuple[int, int]:
        """The same of the low-resolution map: its last row or column, which has one copy only."""
        return self.h % 2, self.w % 2

    def skip(self) -> conv.Problem:
        """The skip's share: an ordinary convolution."""
        r = self.k // 2
        parts = plan.branches([(self.k, self.k)], self.c_out, self.c_skip)
        return conv.Problem(
            self.n, self.c_skip, self.h, self.w, self.c_out, self.h, self.w, [1, 1], (r, r), [1, 1], parts
        )


def problem(x_low: Tensor, skip: Tensor, weight: Tensor) -> Problem:
    """Of checked arguments."""
    n, c_low, lh, lw = x_low.shape
    return Problem(
        n, c_low, skip.shape[1], lh, lw, skip.shape[2], skip.shape[3], weight.shape[0], weight.shape[2]
    )


def windows(
    p: Problem, mask_low: Tensor | None, mask_skip: Tensor | None, skip: Tensor, pad: int
) -> tuple[Windows, RowList, Tensor]:
    """Row list of the output pixels by parity, ratios and new mask."""
    low, side = Plane.of(mask_low, skip), Plane.of(mask_skip, skip)
    mask = mask_skip if mask_low is None else mask_low
    km = (p.k + 1) // 2
    words_low, words_skip = plan.square_taps(km).words, plan.square_taps(p.k).words
    ratio = torch.empty((1, p.pixels), dtype=torch.float32, device=skip.device)
    natural = torch.empty(p.pixels, dtype=torch.int8, device=skip.device)
    new_mask, stored = empty_mask((p.n, 1, p.h, p.w), mask, skip)
    cut_h, cut_w = p.cut

    def fill(grid: tuple[int, int], entries: Entries, block: int) -> None:
        current().upcat_windows[grid](
            low.data, side.data, stored, ratio, natural, *entries[:4],
            p.n, p.h, p.w, p.lh, p.lw, entries.q, entries.n_blocks, *low.strides, *side.strides,
            C_LOW=p.c_low, C_SKIP=p.c_skip, K=p.k, CUT_H=cut_h, CUT_W=cut_w,
            LOW_MASK=low.kind, SKIP_MASK=side.kind, WORDS_LOW=words_low, WORDS_SKIP=words_skip, BLOCK=block,
        )  # fmt: skip

    pixels = p.n * -(-p.h // 2) * -(-p.w // 2)
    row = lists.row_list(skip.device, pixels, (2 + cut_h) * (2 + cut_w), 3, words_low + words_skip, pad, fill)
    return Windows(ratio, natural), row, new_mask


def low_weights(weight: Tensor, p: Problem, segments: int, *, adjoint: bool) -> Tensor:
    """Flat [segments, C_out, C_low, taps], see weights.fold_low."""
    slots = (p.k + 1) ** 2 if adjoint else ((p.k + 1) // 2) ** 2
    cut_h, cut_w = p.low_cut if adjoint else p.cut
    folded = weight.new_empty(segments * p.c_out * p.c_low * slots)
    block_t = plan.power_of_two(p.k * p.k)
    block_c = max(1, min(plan.power_of_two(p.c_low), 2048 // block_t))
    current().fold_low[(p.c_out, -(-p.c_low // block_c), segments)](
        weight, folded, p.c_low, p.c_low + p.c_skip,
        K=p.k, CUT_H=cut_h, CUT_W=cut_w, ADJOINT=adjoint, SLOTS=slots, BC=block_c, BT=block_t,
    )  # fmt: skip
    return folded


def forward(
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """out and new_mask."""
    p = problem(x_low, skip, weight)
    if few_outputs.fits(p.c_out, p.k, p.k, [1, 1], [1, 1]):
        maps = [few_outputs.Map(x_low, mask_low), few_outputs.Map(skip, mask_skip)]
        return few_outputs.forward(maps, skip, weight, bias, (p.h, p.w), (p.k // 2, p.k // 2))
    weight = weight.contiguous()
    blocks = launch.gather_blocks(p.pixels, p.c_out, skip)
    window, row, new_mask = windows(p, mask_low, mask_skip, skip, blocks.m)
    km = (p.k + 1) // 2
    low_taps, skip_taps = plan.square_taps(km, km * km), plan.square_taps(p.k)
    low_parts = plan.branches([(km, km)], p.c_out, p.c_low)
    folded = low_weights(weight, p, row.segments, adjoint=False)
    packed_low = launch.pack(
        folded, None, low_parts, low_taps, p.c_out, p.c_low, p.c_low, row.segments, blocks.n, adjoint=False
    )
    packed_skip = launch.pack(
        weight[:, p.c_low :], None, p.skip().parts, skip_taps, p.c_out, p.c_skip, p.c_low + p.c_skip, 1,
        blocks.n, adjoint=False,
    )  # fmt: skip
    out = launch.empty_features((p.n, p.c_out, p.h, p.w), skip)
    launch.matmul(
        row, [(conv.features(x_low), low_taps, packed_low), (conv.features(skip), skip_taps, packed_skip)],
        out, p.c_out, blocks, ratio=window.ratio, pixels=p.pixels, bias=bias,
    )  # fmt: skip
    return out, new_mask


class Gradients(NamedTuple):
    """None where not needed."""

    low: Tensor | None
    skip: Tensor | None
    weight: Tensor | None
    sums: Tensor  # [C_out] float32


def backward(
    grad_out: Tensor,
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    *,
    needs_low: bool,
    needs_skip: bool,
    needs_weight: bool,
) -> Gradients:
    """Gradients of `forward`."""
    p = problem(x_low, skip, weight)
    weight = weight.contiguous()
    if few_outputs_gradients.fits(p.c_out, p.k, p.k, [1, 1], [1, 1]):
        maps = [few_outputs.Map(x_low, mask_low), few_outputs.Map(skip, mask_skip)]
        return few_outputs_backward(grad_out, maps, weight, p, (needs_low, needs_skip), needs_weight)
    window, row, _ = windows(p, mask_low, mask_skip, skip, launch_gradients.MAX_BLOCK_DEPTH)
    grad = launch_gradients.scale_gradient(
        grad_out, window, p.largest_ratio, for_features=needs_low or needs_skip, for_weights=needs_weight
    )
    side = p.skip()
    grad_low = low_adjoint(grad, x_low, mask_low, weight, window, p) if needs_low else None
    grad_skip = (
        conv.adjoint(grad, skip, mask_skip, [weight[:, p.c_low :]], None, window, side)
        if needs_skip
        else None
    )
    grad_weight = None
    if needs_weight:
        km = (p.k + 1) // 2
        low_taps, skip_taps = plan.square_taps(km), plan.square_taps(p.k)
        low_parts = plan.branches([(km, km)], p.c_out, p.c_low)
        grad_weight = torch.empty_like(weight)
        stride_out = p.c_low + p.c_skip
        share = launch_gradients.weight_partials(
            row, conv.features(x_low), 0, 0, grad, low_taps, low_parts, shared=False
        )
        whole = side.parts[0]
        launch_gradients.finish(
            share, 0, whole, p.k, weight, grad_weight, p.c_low, stride_out, low=True, cut=p.cut
        )
        del share
        share = launch_gradients.weight_partials(
            row, conv.features(skip), 1, low_taps.words, grad, skip_taps, side.parts, shared=True
        )
        launch_gradients.finish(share, 0, whole, p.k, weight, grad_weight[:, p.c_low :], p.c_skip, stride_out)
    return Gradients(grad_low, grad_skip, grad_weight, grad.sums)


def few_outputs_backward(
    grad_out: Tensor,
    sources: list[few_outputs.Map],
    weight: Tensor,
    p: Problem,
    needs: tuple[bool, bool],
    needs_weight: bool,
) -> Gradients:
    """`backward` with few output channels, one launch for each source."""
    grad_weight = torch.empty_like(weight) if needs_weight else None
    part = p.skip().parts[0]
    grads: list[Tensor | None] = [None, None]
    sums = None
    for i, first in enumerate((0, p.c_low)):
        if sums is not None and not (needs[i] or needs_weight):
            continue
        share = few_outputs_gradients.backward(
            grad_out, sources, i, weight[:, first:], (p.k // 2, p.k // 2),
            needs_x=needs[i], needs_weights=needs_weight,
        )  # fmt: skip
        grads[i] = share.x
        sums = share.sums if sums is None else sums
        if grad_weight is not None and share.weights is not None:
            launch_gradients.finish(
                share.weights, 0, part, p.k, weight[:, first:], grad_weight[:, first:],
                sources[i].x.shape[1], p.c_low + p.c_skip,
            )  # fmt: skip
    assert sums is not None
    return Gradients(grads[0], grads[1], grad_weight, sums)


def low_adjoint(
    grad: launch_gradients.ScaledGradient,
    x_low: Tensor,
    mask_low: Tensor | None,
    weight: Tensor,
    window: Windows,
    p: Problem,
) -> Tensor:
    """Gradient of x_low, channels-last: (k + 1)^2 summed taps instead of four times k^2."""
    plane = Plane.of(mask_low, x_low)
    cut_h, cut_w = p.low_cut
    segments = (1 + cut_h) * (1 + cut_w)
    slots = (p.k + 1) ** 2
    taps = plan.square_taps(p.k + 1, slots)
    parts = plan.branches([(p.k + 1, p.k + 1)], p.c_out, p.c_low)
    pixels = p.n * p.lh * p.lw
    blocks = launch.gather_blocks(pixels, p.c_low, x_low)

    def fill(grid: tuple[int, int], entries: Entries, block: int) -> None:
        current().low_adjoint_windows[grid](
            plane.data, window.state, *entries[:4],
            p.n, p.h, p.w, p.lh, p.lw, entries.q, entries.n_blocks, *plane.strides,
            K=p.k, CUT_H=cut_h, CUT_W=cut_w, LOW_MASK=plane.kind, WORDS=taps.words, BLOCK=block,
        )  # fmt: skip

    row = lists.row_list(x_low.device, pixels, segments, 2, taps.words, blocks.m, fill)
    folded = low_weights(weight, p, segments, adjoint=True)
    packed = launch.pack(
        folded, None, parts, taps, p.c_out, p.c_low, p.c_low, segments, blocks.n, adjoint=True
    )
    grad_low = launch.empty_features(tuple(x_low.shape), x_low)
    source = Source(grad.copies, p.c_out, grad.pitch, p.w, 1)
    launch.matmul(row, [(source, taps, packed)], grad_low, p.c_low, blocks, unscale=grad.unscale)
    return grad_low
