"""The network's plain partial convolutions, encoder stages 5 to 8; and depthwise ones, not of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from forms.hybrid import count_valid, masked, scaled
from forms.naive import naive_partial_conv2d
from operators.declaration import Layer, Operator, Problem

LAYERS = [
    Layer(f"pconv{stage}", "partial_conv2d", (512,), 512, (3,), stride=2, out_size=256 >> stage, stage=stage)
    for stage in range(5, 9)
]
# Of the input of MSFEF layer 3: at 64x64 pixels, 128 channels.
DEPTHWISE = [
    Layer(
        f"depthwise{k}" + ("" if stride == 1 else "s2"),
        "partial_conv2d",
        (128,),
        128,
        (k,),
        stride,
        out_size=64 // stride,
        input_of="msfef3",
        groups=128,
    )
    for k in (3, 7)
    for stride in (1, 2)
]


def arguments(problem: Problem) -> tuple[Tensor, Tensor | None, Tensor, Tensor, int, int, int, int]:
    weight = problem.weights[0]
    padding = weight.shape[-1] // 2
    return (
        problem.features[0],
        problem.masks[0],
        weight,
        problem.biases[0],
        problem.layer.stride,
        padding,
        1,
        problem.layer.groups,
    )


def hybrid_partial_conv2d(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> tuple[Tensor, Tensor]:
    kernel = weight.shape[-1]
    with torch.no_grad():
        count = count_valid(x, mask, kernel, stride)
    raw = F.conv2d(masked(x, mask), weight, None, stride, padding, dilation, groups)
    return scaled(raw, kernel * kernel, count, bias)


OPERATOR = Operator(
    "partial_conv2d",
    layers=LAYERS + DEPTHWISE,
    quick=LAYERS[:1],
    kernels=LAYERS[:1],  # a map of few pixels
    arguments=arguments,
    naive_c=naive_partial_conv2d,
    naive_1=naive_partial_conv2d,
    hybrid=hybrid_partial_conv2d,
)
