"""The up-sampled source of a decoder stage, which is read where it is.

Over the low-resolution map the k x k taps of an up-sampled pixel fall on (k + 1) / 2 squared pixels: their
weights are summed beforehand, for each parity of the pixel, so 9 taps cost 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import devices, gather
from .gather import Operand, Storage
from .gradients import ScaledGradient
from .kernel_set import current
from .masks import empty_mask
from .problem import Problem, Source
from .rows import Entries, RowList, Windows, row_list
from .taps import forward_taps, square
from .weights import fold_low, pack


def cut(p: Problem) -> tuple[int, int]:
    """Last rows and columns whose windows an odd size cuts between two copies of a low pixel."""
    reach = p.window[0] // 2
    return (min(reach, p.h) if p.h % 2 else 0, min(reach, p.w) if p.w % 2 else 0)


def output_rows(p: Problem, pad: int) -> tuple[Windows, RowList, Tensor]:
    """Row list of the output pixels by parity, ratios and new mask, of a decoder stage."""
    low, skip = p.sources
    device = skip.x.device
    windows = Windows(
        torch.empty(1, p.pixels, dtype=torch.float32, device=device),
        torch.empty(p.pixels, dtype=torch.int8, device=device),
    )
    new_mask, stored = empty_mask((p.n, 1, p.ho, p.wo), p.call.mask_like)
    cut_h, cut_w = cut(p)
    low_n, low_h, low_w = low.mask.strides
    skip_n, skip_h, skip_w = skip.mask.strides

    def fill(grid: tuple[int, int], entries: Entries, block: int) -> None:
        current().upcat_windows[grid](
            mask_low=low.mask.data, mask_skip=skip.mask.data, new_mask=stored, ratio=windows.ratio,
            pixel_state=windows.state,
            entry_state=entries.state, entry_ints=entries.ints, entry_words=entries.words,
            counts=entries.counts, Q=entries.q, n_blocks=entries.n_blocks,
            N=p.n, H=p.h, W=p.w, LH=low.x.shape[2], LW=low.x.shape[3],
            low_n=low_n, low_h=low_h, low_w=low_w, skip_n=skip_n, skip_h=skip_h, skip_w=skip_w,
            C_LOW=low.channels, C_SKIP=skip.channels, K=p.window[0], CUT_H=cut_h, CUT_W=cut_w,
            LOW_MASK=low.mask.kind, SKIP_MASK=skip.mask.kind, WORDS_LOW=low.taps.words,
            WORDS_SKIP=skip.taps.words, BLOCK=block,
        )  # fmt: skip

    pixels, words = p.n * -(-p.h // 2) * -(-p.w // 2), low.taps.words + skip.taps.words
    return windows, row_list(device, pixels, (2 + cut_h) * (2 + cut_w), 3, words, pad, fill), new_mask


def operand(p: Problem, source: Source, rows: int) -> Operand:
    """What forward gathers of it, and its weights in `rows` rows for each segment."""
    cut_h, cut_w = cut(p)
    segments = (2 + cut_h) * (2 + cut_w)
    weight = p.call.weights[0].contiguous()
    folded = fold_low(weight, p.window[0], source.channels, segments, (cut_h, cut_w), adjoint=False)
    packed = pack(
        folded, None, source.branches, source.taps, p.c_out, source.channels, source.channels, segments, rows,
        adjoint=False,
    )  # fmt: skip
    return Operand(gather.storage_of(source.x), source.taps, packed)


def adjoint(p: Problem, source: Source, grad: ScaledGradient, windows: Windows) -> Tensor:
    """Gradient of x, channels-last: (k + 1)^2 summed taps instead of four times k^2."""
    x, mask, k = source.x, source.mask, p.window[0]
    _, c_low, lh, lw = x.shape
    cut_h, cut_w = p.h % 2, p.w % 2  # the last row or column has one copy only
    segments = (1 + cut_h) * (1 + cut_w)
    parts = square(k + 1)
    taps = forward_taps(parts, (1, 1), True)
    pixels = p.n * lh * lw
    blocks = gather.blocks(p, pixels, c_low)
    low_n, low_h, low_w = mask.strides

    def fill(grid: tuple[int, int], entries: Entries, block: int) -> None:
        current().low_adjoint_windows[grid](
            mask_low=mask.data, pixel_state=windows.state,
            entry_state=entries.state, entry_ints=entries.ints, entry_words=entries.words,
            counts=entries.counts, Q=entries.q, n_blocks=entries.n_blocks,
            N=p.n, H=p.h, W=p.w, LH=lh, LW=lw, low_n=low_n, low_h=low_h, low_w=low_w,
            K=k, CUT_H=cut_h, CUT_W=cut_w, LOW_MASK=mask.kind, WORDS=taps.words, BLOCK=block,
        )  # fmt: skip

    row = row_list(x.device, pixels, segments, 2, taps.words, blocks.m, fill)
    weight = p.call.weights[0].contiguous()
    folded = fold_low(weight, k, c_low, segments, (cut_h, cut_w), adjoint=True)
    packed = pack(
        folded, None, parts, taps, p.c_out, c_low, c_low, segments, blocks.filled(c_low), adjoint=True
    )
    grad_low = devices.empty_features(tuple(x.shape), x)
    storage = Storage(grad.copies, p.c_out, grad.pitch, p.w, 1)
    gather.matmul(p, row, [Operand(storage, taps, packed)], grad_low, blocks, unscale=grad.unscale)
    return grad_low
