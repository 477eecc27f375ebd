"""A source as it is: rows of an ordinary convolution over it, and of its adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

from . import devices, gather
from .gather import Operand, Storage
from .gradients import ScaledGradient
from .kernel_set import current
from .masks import empty_mask
from .problem import Problem, Source, share
from .rows import Entries, RowList, Windows, row_list
from .taps import Taps, adjoint_taps
from .weights import flat, pack


def output_rows(p: Problem, pad: int) -> tuple[Windows, RowList, Tensor]:
    """Row list of the output pixels, ratios and new mask, of a call over this source alone."""
    (source,) = p.sources
    device = source.x.device
    windows = Windows(
        torch.empty(len(p.branches), p.pixels, dtype=torch.float32, device=device),
        torch.empty(p.pixels, dtype=torch.int8, device=device),
    )
    new_mask, stored = empty_mask((p.n, 1, p.ho, p.wo), p.call.mask_like)
    mask_n, mask_h, mask_w = source.mask.strides

    def fill(grid: tuple[int, int], entries: Entries, block: int) -> None:
        current().forward_windows[grid](
            mask=source.mask.data, new_mask=stored, ratio=windows.ratio, pixel_state=windows.state,
            entry_state=entries.state, entry_ints=entries.ints, entry_words=entries.words,
            counts=entries.counts, Q=entries.q, n_blocks=entries.n_blocks,
            N=p.n, H=p.h, W=p.w, HO=p.ho, WO=p.wo,
            pad_top=p.padding[0], pad_left=p.padding[1], mask_n=mask_n, mask_h=mask_h, mask_w=mask_w,
            WINDOWS=tuple(branch.window for branch in p.branches), SH=p.stride[0], SW=p.stride[1],
            DH=p.dilation[0], DW=p.dilation[1], MASK=source.mask.kind, WORDS=source.taps.words, BLOCK=block,
        )  # fmt: skip

    return windows, row_list(device, p.pixels, 1, 2, source.taps.words, pad, fill), new_mask


def operand(p: Problem, source: Source, scales: Tensor | None, rows: int) -> Operand:
    """What forward gathers of it, and its weights in `rows` rows."""
    weight = flat(p.call.weights, p.branches)
    packed = pack(
        share(weight, p, source), scales, p.branches, source.taps, p.c_out, source.channels,
        p.call.weights[0].shape[1], 1, rows, adjoint=False,
    )  # fmt: skip
    return Operand(gather.storage_of(source.x), source.taps, packed)


def adjoint(
    p: Problem, source: Source, scales: Tensor | None, grad: ScaledGradient, windows: Windows
) -> Tensor:
    """Gradient of x, channels-last."""
    x = source.x
    taps = adjoint_taps(p.branches, p.stride, p.padding, p.dilation)
    blocks = gather.blocks(p, p.n * p.h * p.w, source.channels)
    row = _input_rows(p, source, windows, taps, blocks.m)
    packed = pack(
        share(flat(p.call.weights, p.branches), p, source), scales, p.branches, taps, p.c_out,
        source.channels, p.call.weights[0].shape[1], 1, blocks.filled(source.channels), adjoint=True,
    )  # fmt: skip
    grad_x = devices.empty_features(tuple(x.shape), x)
    storage = Storage(grad.copies, p.c_out, grad.pitch, p.wo, -1, p.pixels * grad.pitch)
    gather.matmul(p, row, [Operand(storage, taps, packed)], grad_x, blocks, unscale=grad.unscale)
    return grad_x


def _input_rows(p: Problem, source: Source, windows: Windows, taps: Taps, pad: int) -> RowList:
    """Row list of the input pixels, by residue modulo the stride."""
    sh, sw = p.stride
    last = p.branches[-1]
    reach = p.branches[-2].window if len(p.branches) > 1 else ()
    pixels = p.n * -(-p.h // sh) * -(-p.w // sw)
    mask_n, mask_h, mask_w = source.mask.strides

    def fill(grid: tuple[int, int], entries: Entries, block: int) -> None:
        current().adjoint_windows[grid](
            mask=source.mask.data, pixel_state=windows.state,
            entry_state=entries.state, entry_ints=entries.ints, entry_words=entries.words,
            counts=entries.counts, Q=entries.q, n_blocks=entries.n_blocks,
            N=p.n, H=p.h, W=p.w, HO=p.ho, WO=p.wo, pad_top=p.padding[0], pad_left=p.padding[1],
            mask_n=mask_n, mask_h=mask_h, mask_w=mask_w,
            FIRST_Y=taps.y.first, FIRST_X=taps.x.first, STEP_Y=taps.y.step, STEP_X=taps.x.step,
            JUMP_Y=taps.y.jump, JUMP_X=taps.x.jump, KH=last.kh, KW=last.kw, NY=taps.y.taps, NX=taps.x.taps,
            REACH=reach, SH=sh, SW=sw, DH=p.dilation[0], DW=p.dilation[1], MASK=source.mask.kind,
            WORDS=taps.words, BLOCK=block,
        )  # fmt: skip

    return row_list(source.x.device, pixels, sh * sw, 2, taps.words, pad, fill)
