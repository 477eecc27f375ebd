"""The network's decoder stages, 9 to 16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from forms.hybrid import count_valid, masked, scaled
from forms.naive import naive_partial_conv2d, ratio_of
from operators.declaration import Layer, Operator, Problem

#: Channels of the low map and of the skip, of the output, and whose input the skip is.
STAGES = [
    ((512, 512), 512, "pconv8"),
    ((512, 512), 512, "pconv7"),
    ((512, 512), 512, "pconv6"),
    ((512, 512), 512, "pconv5"),
    ((512, 256), 256, "msfef4"),
    ((256, 128), 128, "msfef3"),
    ((128, 64), 64, "msfef2"),
    ((64, 3), 3, "msfef1"),
]
LAYERS = [
    Layer(
        f"upcat{stage}",
        "upcat_partial_conv2d",
        channels,
        c_out,
        (3,),
        stride=1,
        out_size=1 << (stage - 8),
        stage=stage,
        skip=skip,
    )
    for stage, (channels, c_out, skip) in enumerate(STAGES, start=9)
]


def arguments(
    problem: Problem,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor]:
    (x_low, skip), (mask_low, mask_skip) = problem.features, problem.masks
    return x_low, mask_low, skip, mask_skip, problem.weights[0], problem.biases[0]


def naive_upcat_c(
    x_low: Tensor,
    mask_low: Tensor,
    skip: Tensor,
    mask_skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
) -> tuple[Tensor, Tensor]:
    """Up-sample and concatenate features and C-channel masks, then the C-channel partial convolution."""
    x = torch.cat([F.interpolate(x_low, scale_factor=2, mode="nearest"), skip], 1)
    mask = torch.cat([F.interpolate(mask_low, scale_factor=2, mode="nearest"), mask_skip], 1)
    return naive_partial_conv2d(x, mask, weight, bias, 1, weight.shape[-1] // 2, 1, 1, ones)


def naive_upcat_1(
    x_low: Tensor,
    mask_low: Tensor,
    skip: Tensor,
    mask_skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same with one plane for each of the two halves; a half's count weighs its channels."""
    c_low, c_skip, padding = x_low.shape[1], skip.shape[1], weight.shape[-1] // 2
    with torch.no_grad():
        mask_up = F.interpolate(mask_low, scale_factor=2, mode="nearest")
        count = c_low * F.conv2d(mask_up, ones, padding=padding)
        count = count + c_skip * F.conv2d(mask_skip, ones, padding=padding)
        ratio, new_mask = ratio_of(count, (c_low + c_skip) * ones.numel())
    x = torch.cat([F.interpolate(x_low, scale_factor=2, mode="nearest") * mask_up, skip * mask_skip], 1)
    raw = F.conv2d(x, weight, bias, padding=padding)
    bias_view = bias.view(1, -1, 1, 1)
    return ((raw - bias_view) * ratio + bias_view) * new_mask, new_mask


def hybrid_upcat(
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """The low map is masked before it is up-sampled, at a quarter of the pixels."""
    kernel = weight.shape[-1]
    up = F.interpolate(masked(x_low, mask_low), scale_factor=2, mode="nearest")
    with torch.no_grad():
        mask_up = None if mask_low is None else F.interpolate(mask_low, scale_factor=2, mode="nearest")
        count = x_low.shape[1] * count_valid(up, mask_up, kernel, 1)
        count = count + skip.shape[1] * count_valid(skip, mask_skip, kernel, 1)
    raw = F.conv2d(torch.cat([up, masked(skip, mask_skip)], 1), weight, None, 1, kernel // 2)
    return scaled(raw, weight[0].numel(), count, bias)


OPERATOR = Operator(
    "upcat_partial_conv2d",
    layers=LAYERS,
    quick=LAYERS[-3::2],
    kernels=LAYERS[-2:],  # more than 3 channels out, and 3
    arguments=arguments,
    naive_c=naive_upcat_c,
    naive_1=naive_upcat_1,
    hybrid=hybrid_upcat,
)
