"""Forward of every operator, step by step."""

from __future__ import annotations

from torch import Tensor

from pconv_ext.ops.call import Call

from . import devices, few_inputs, few_outputs, gather, plain, upsampled
from .gather import Operand
from .problem import Problem, Source, problem
from .rows import RowList, Windows
from .weights import fold_bias


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """out and new_mask; features may be channels-last whatever the layout of the call."""
    p = problem(call)
    scales = None if call.scales is None else call.scales.contiguous()
    bias = fold_bias(call.biases, scales)
    if plan := few_outputs.plan(p):
        return few_outputs.forward(p, bias, plan)
    if plan := few_inputs.plan(p):
        return few_inputs.forward(p, scales, bias, plan)
    blocks = gather.blocks(p, p.pixels, p.c_out)
    windows, row, new_mask = output_rows(p, blocks.m)
    operands = [operand(p, source, scales, blocks.filled(p.c_out)) for source in p.sources]
    out = devices.empty_features((p.n, p.c_out, p.ho, p.wo), call.like)
    gather.matmul(p, row, operands, out, blocks, ratio=windows.ratio, bias=bias)
    return out, new_mask


def output_rows(p: Problem, pad: int) -> tuple[Windows, RowList, Tensor]:
    """Row list of the output pixels, ratios and new mask."""
    return (upsampled if p.sources[0].up else plain).output_rows(p, pad)


def operand(p: Problem, source: Source, scales: Tensor | None, rows: int) -> Operand:
    """What is gathered of `source`, and its weights in `rows` rows."""
    return upsampled.operand(p, source, rows) if source.up else plain.operand(p, source, scales, rows)
