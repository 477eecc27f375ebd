"""Launches of the kernels: buffers, grids and constants. Nothing here waits for the device."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pconv_ext._geometry import memory_format

from . import tuning
from .kernel_set import current
from .lists import RowList
from .plan import Branch, Phase, Taps, power_of_two, rounded, row_channels, row_depth


class Source(NamedTuple):
    """A tensor to gather from: channels-last storage of pixels, `pitch` elements from one to the next."""

    data: Tensor
    channels: int
    pitch: int
    width: int  # pixels of a row
    sign: int  # +1 forward, -1 where taps lead backwards
    copy_stride: int = 0  # from one phase's tensor to the next


def on(device: torch.device) -> Any:
    """Context in which kernels are launched on `device`."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def capability(device: torch.device) -> int:
    """GPU generation for tuning.py; the interpreter takes Hopper's configurations."""
    if device.type != "cuda":
        return 90
    return 90 if torch.cuda.get_device_capability(device)[0] >= 9 else 80


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors; few in the emulator, so that blocks there have several tiles."""
    if device.type != "cuda":
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def empty_features(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised features [N, C, H, W] in channels-last storage, in dtype and on the device of `like`.

    Where storage is the same in both layouts, strides are those of the layout of `like`: the layout of all
    that follows depends on them.
    """
    ambiguous = shape[1] == 1 or shape[2] * shape[3] == 1
    layout = memory_format(like) if ambiguous else torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def precision(dtype: torch.dtype) -> str:
    """Of float32 products: what the user chose for cuDNN's convolutions."""
    chosen = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "ieee" if dtype == torch.float32 and chosen != "tf32" else "tf32"


def gather_blocks(rows: int, n_out: int, like: Tensor) -> tuning.Blocks:
    """Configuration of `matmul` for `rows` pixels and `n_out` channels, dtype and device of `like`."""
    return tuning.gather_blocks(rows, n_out, like.dtype, capability(like.device), precision(like.dtype))


def fold_bias(biases: list[Tensor], scales: Tensor) -> Tensor | None:
    """Sum of scales * biases [C_out] in float32, both in the order of the branches; None without biases."""
    if not biases:
        return None
    n_out = scales.shape[1]
    total = torch.empty(n_out, dtype=torch.float32, device=scales.device)
    current().fold_bias[(-(-n_out // 256),)](
        torch.stack(biases), scales, total, NOUT=n_out, BRANCHES=len(biases), BLOCK=256
    )
    return total


class Packed(NamedTuple):
    """Weights laid out for gather.gather_matmul, with the constants that go with them."""

    data: Tensor
    bk: int
    kp: int
    row_channels: int


def pack(
    weight: Tensor,
    scales: Tensor | None,
    parts: tuple[Branch, ...],
    taps: Taps,
    c_out: int,
    c_in: int,
    stride_out: int,
    slabs: int,
    block_n: int,
    *,
    adjoint: bool,
) -> Packed:
    """Fold and lay out. `weight` is flat, `slabs` weights of [C_out, stride_out, taps] one after the other.

    The summed channels are c_in or, with `adjoint`, c_out.
    """
    summed, kept = (c_out, c_in) if adjoint else (c_in, c_out)
    np_ = rounded(kept, block_n)
    kp = row_depth(summed, taps.x.taps, weight.element_size())
    scales_arg = weight if scales is None else scales
    common = {"NOUT": c_out, "CIN": c_in, "KERNELS": tuple(map(tuple, parts)), "PHASES": _tuples(taps.phases)}
    slab_stride = weight.numel() // slabs if slabs > 1 else 0
    if kp:
        few = row_channels(summed)
        segments = max(slabs, len(taps.y.first) * len(taps.x.first))
        slots = segments * len(taps.phases) * taps.y.taps
        data = weight.new_empty(slots * np_ * kp)
        current().pack_rows[(-(-np_ // 16), slots)](
            weight, scales_arg, data, stride_out, slab_stride, **common,
            FIRST_Y=taps.y.first, FIRST_X=taps.x.first, STEP_Y=taps.y.step, STEP_X=taps.x.step,
            NY=taps.y.taps, NX=taps.x.taps, ROW_CHANNELS=few, NP=np_, KP=kp,
            ADJOINT=adjoint, HAS_SCALES=scales is not None, BR=16,
        )  # fmt: skip
        return Packed(data, kp, kp, few)
    bk = tuning.channel_blocks(summed, weight.dtype)
    kp = rounded(summed, bk)
    data = weight.new_empty(slabs * taps.slots * np_ * kp)
    block_t = power_of_two(max(phase.kh * phase.kw for phase in taps.phases))
    block_k = max(16, min(bk, 2048 // block_t))
    current().pack_taps[(np_, -(-kp // block_k), slabs * len(taps.phases))](
        weight, scales_arg, data, stride_out, slab_stride, **common, SLOTS=taps.slots, NP=np_, KP=kp,
        ADJOINT=adjoint, HAS_SCALES=scales is not None, BT=block_t, BK=block_k, num_warps=8,
    )  # fmt: skip
    return Packed(data, bk, kp, 0)


def _tuples(phases: tuple[Phase, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, phases))


def source_constants(
    source: Source, taps: Taps, packed: Packed
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """SOURCE and PHASES of gather.accumulate."""
    phases = _tuples(taps.phases)
    slab = taps.slab
    if packed.row_channels:  # a slot is a row of taps
        per_phase = taps.y.taps
        phases = tuple((*p[:4], i * per_phase, *p[5:]) for i, p in enumerate(phases))
        shared = taps.slab == 0 and len(taps.y.first) * len(taps.x.first) == 1
        slab = 0 if shared else per_phase * len(phases)
    constants = (
        source.channels, source.pitch, packed.bk, packed.kp, taps.y.step, taps.x.step, taps.x.taps, slab,
        packed.row_channels, taps.words,
    )  # fmt: skip
    return constants, phases


def matmul(
    row: RowList,
    sources: list[tuple[Source, Taps, Packed]],
    out: Tensor,
    n_out: int,
    blocks: tuning.Blocks,
    *,
    ratio: Tensor | None = None,
    pixels: int = 0,
    bias: Tensor | None = None,
    unscale: float = 1.0,
) -> None:
    """out [pixels, n_out] (channels-last storage) of the gathered taps times the packed weights."""
    np_ = rounded(n_out, blocks.n)
    grid = (row.capacity // blocks.m * (np_ // blocks.n), row.segments)
    steps = [
        (source.sign * taps.y.jump * source.width, source.sign * taps.x.jump) for source, taps, _ in sources
    ]
    first, second = sources[0], sources[-1]
    source0, phases0 = source_constants(*first)
    source1, phases1 = source_constants(*second) if len(sources) > 1 else ((), ())
    current().gather_matmul[grid](
        first[0].data, second[0].data, first[2].data, second[2].data, row.ints, row.words, row.limits,
        out if ratio is None else ratio, out if bias is None else bias.contiguous(), out,
        row.entries, row.capacity, pixels, first[0].copy_stride, unscale, *steps[0], *steps[-1],
        SOURCE0=source0, PHASES0=phases0, SOURCE1=source1, PHASES1=phases1,
        FIRST_Y=first[1].y.first, FIRST_X=first[1].x.first,
        WORDS0=first[1].words, NOUT=n_out, NP=np_, RATIOS=0 if ratio is None else ratio.shape[0],
        PLAIN_PHASE=len(phases0) - 1, HAS_BIAS=bias is not None,
        BM=blocks.m, BN=blocks.n, STAGES=blocks.stages, PRECISION=precision(out.dtype),
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
