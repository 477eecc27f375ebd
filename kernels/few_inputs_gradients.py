"""Gradient of the weights over few channels in one launch: the CUDA kernel ``few_inputs_gradients``.

Triton has no twin of it: launch_gradients.py has the long way to the same partial sums.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import few_inputs, launch, plan
from .kernel_set import current
from .launch_gradients import Partial
from .lists import Plane
from .plan import Branch

if TYPE_CHECKING:
    from .conv import Problem

# Those of csrc/cuda/few_inputs_gradients.cu.
_TILE_ROWS, _TILE_COLUMNS = 8, 16  # output pixels
_JOBS, _WIDE, _HIGH = 8, 64, 32  # of a block, output channels of a job, its elements of a row of taps
_COPIES = 2  # of the gradient that a block can have
_MAX_KERNELS, _MAX_GROUPS = 8, 8


class Job(NamedTuple):
    """What a warp sums up: 32 elements of a row of taps."""

    copy: int  # of the gradient, of the group's
    row: int  # of the largest window
    first: int  # element of the row of taps
    slot: int  # of its section of the partial sums; -1: none


class Section(NamedTuple):
    """Blocks that take the same class of pixels."""

    slots: int
    groups: tuple[tuple[int, int], ...]  # the branches whose ratios a block scales with; -1 for none
    jobs: tuple[Job, ...]


@lru_cache(maxsize=256)
def sections(parts: tuple[Branch, ...], cp: int) -> tuple[Section, Section]:
    """The merged or only kernel, and each of several kernels by itself."""
    own = list(range(len(parts))) if len(parts) > 1 else []
    return _section(parts, [len(parts) - 1], cp), _section(parts, own, cp)


def _section(parts: tuple[Branch, ...], branches: list[int], cp: int) -> Section:
    blocks: list[list[tuple[int, Job]]] = []
    slot = 0
    for b in branches:
        jobs = [
            Job(0, parts[b].oy + y, first, slot + y)
            for y in range(parts[b].kh)
            for first in range(0, cp, _HIGH)
        ]
        for at in range(0, len(jobs), _JOBS):
            some = jobs[at : at + _JOBS]
            if (
                not blocks
                or len(blocks[-1]) + len(some) > _JOBS
                or len({k for k, _ in blocks[-1]}) == _COPIES
            ):
                blocks.append([])
            blocks[-1] += [(b, job) for job in some]
        slot += parts[b].kh
    groups, result = [], []
    for block in blocks:
        scaled = sorted({b for b, _ in block})
        groups.append((scaled[0], scaled[1] if len(scaled) > 1 else -1))
        result += [job._replace(copy=scaled.index(b)) for b, job in block]
        result += [Job(0, 0, 0, -1)] * (_JOBS - len(block))
    return Section(slot, tuple(groups), tuple(result))


def fits(x: Tensor, mask: Tensor | None, p: Problem) -> bool:
    """Whether the kernel is there and can compute the gradient of the weights of `p`, of `x` and `mask`."""
    if current().few_inputs_gradients is None or not few_inputs.loads(x, mask, p):
        return False
    item = x.element_size()
    cp = plan.row_depth(p.c_in, p.parts[-1].kw, item)
    return (
        (item == 4 or p.stride[1] * plan.row_channels(p.c_in) * item % 16 == 0)
        and len(p.parts) <= _MAX_KERNELS
        and sum(len(section.groups) for section in sections(p.parts, cp)) <= _MAX_GROUPS
        and p.pixels > 0
    )


def partials(grad_out: Tensor, x: Tensor, mask: Tensor | None, p: Problem) -> tuple[Partial, Tensor]:
    """Sums for launch_gradients.finish, and those [C_out] of `grad_out` over live pixels."""
    plane = Plane.of(mask, x)
    grad_out = grad_out.contiguous(memory_format=torch.channels_last)
    last = p.parts[-1]
    few = plan.row_channels(p.c_in)
    cp = plan.row_depth(p.c_in, last.kw, x.element_size())
    pitch = plan.rounded(p.c_out, 8)
    both = sections(p.parts, cp)
    tiles = p.n * -(-p.ho // _TILE_ROWS) * -(-p.wo // _TILE_COLUMNS)
    wide = -(-p.c_out // _WIDE)
    room = 2 * launch.processors(x.device)  # for blocks that run at the same time
    parts = [
        max(1, min(tiles, room // (len(section.groups) * wide))) if section.groups else 0 for section in both
    ]
    sizes = [(i == 0) * pitch + section.slots * cp * pitch for i, section in enumerate(both)]
    data = torch.empty(parts[0] * sizes[0] + parts[1] * sizes[1], dtype=torch.float32, device=x.device)
    unscale = float(plan.power_of_two(last.kh * last.kw)) if x.dtype == torch.float16 else 1.0
    blocks = sum(count * len(section.groups) for count, section in zip(parts, both, strict=True))
    current().few_inputs_gradients[(blocks, wide)](
        x, plane.data, grad_out, data, *x.stride(), *plane.strides, 1 / unscale,
        N=p.n, C=p.c_in, H=p.h, W=p.w, NOUT=p.c_out, HO=p.ho, WO=p.wo, TOP=p.padding[0], LEFT=p.padding[1],
        SH=p.stride[0], SW=p.stride[1], ROW_CHANNELS=few, CP=cp, PITCH=pitch,
        KERNELS=tuple(part[:4] for part in p.parts), GROUPS=both[0].groups + both[1].groups,
        JOBS=both[0].jobs + both[1].jobs, GROUPS0=len(both[0].groups), GROUPS1=len(both[1].groups),
        PARTS0=parts[0], PARTS1=parts[1], SIZE0=sizes[0], SIZE1=sizes[1],
        MASK=plane.kind, PRECISION=launch.precision(x.dtype),
    )  # fmt: skip
    # `finish` has few threads and reads one part after the other: here many add them up
    total = data.new_empty(sum(sizes))
    begin = parts[0] * sizes[0]
    torch.sum(data[:begin].view(parts[0], -1), 0, out=total[: sizes[0]])
    if parts[1]:
        torch.sum(data[begin:].view(parts[1], -1), 0, out=total[sizes[0] :])
    slots = both[0].slots + both[1].slots
    own = tuple(both[0].slots + sum(part.kh for part in p.parts[:b]) for b in range(len(p.parts)))
    partial = Partial(
        total[pitch:].view(1, 1, slots, cp, pitch),
        1,
        slots,
        cp,
        own if both[1].slots else (-1,),
        few,
        unscale,
    )
    return partial, total[: p.c_out]
