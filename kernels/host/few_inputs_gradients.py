"""Gradient of the weights over few channels in one launch: the CUDA kernel ``few_inputs_gradients``.

gradients.py and wgrad.py have the long way to the same partial sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import devices, few_inputs
from .gradients import unscale_of
from .kernel_set import Plan, current
from .problem import Problem
from .sizes import row_channels
from .weights import Partial


def plan(p: Problem) -> Plan | None:
    """How csrc/cuda/few_inputs_gradients.cu computes `p`; None if it cannot, or the kernels lack it."""
    kernel = current().few_inputs_gradients
    if kernel is None or not (cp := few_inputs.depth(p)):
        return None
    like = p.call.like
    sizes = few_inputs.sizes(p) | {"CP": cp, "WINDOWS": tuple([branch.window for branch in p.branches])}
    made = kernel.plan(ITEM=like.element_size(), **sizes, PROCESSORS=devices.processors(like.device))
    return Plan(made, sizes) if made.fits else None


def partials(p: Problem, grad_out: Tensor, plan: Plan) -> tuple[Partial, Tensor]:
    """Sums for weights.finish, and those [C_out] of `grad_out` over live pixels."""
    (source,), made = p.sources, plan.made
    x, pitch, cp = source.x, made.channels, plan.sizes["CP"]
    grad_out = grad_out.contiguous(memory_format=torch.channels_last)
    data = torch.empty(made.scratch, dtype=torch.float32, device=x.device)
    unscale = unscale_of(x.dtype, p.largest_ratio)
    current().few_inputs_gradients[made.grid](
        **plan.sizes, x=x, mask=source.mask.data, grad=grad_out, partial=data, scale=1 / unscale, PITCH=pitch,
        GROUPS=made.groups, JOBS=made.jobs, GROUPS0=made.sections[0], GROUPS1=made.sections[1],
        SPLITS0=made.splits[0], SPLITS1=made.splits[1], SIZE0=made.sizes[0], SIZE1=made.sizes[1],
        MASK=source.mask.kind, PRECISION=p.precision,
    )  # fmt: skip
    # `finish` has few threads and reads one part after the other: here many add them up
    total = data.new_empty(sum(made.sizes))
    begin = made.splits[0] * made.sizes[0]
    torch.sum(data[:begin].view(made.splits[0], -1), 0, out=total[: made.sizes[0]])
    if made.splits[1]:
        torch.sum(data[begin:].view(made.splits[1], -1), 0, out=total[made.sizes[0] :])
    merged, slots = made.slots[0], sum(made.slots)
    own = tuple(merged + sum(one.kh for one in p.branches[:b]) for b in range(len(p.branches)))
    partial = Partial(
        total[pitch:].view(1, 1, slots, cp, pitch),
        own if made.slots[1] else (-1,),
        row_channels(source.channels),
        unscale,
    )
    return partial, total[: p.c_out]
