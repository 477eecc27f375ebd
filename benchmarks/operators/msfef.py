"""The four MSFEF layers of the paper's network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from forms.hybrid import count_valid, masked, ratio_of, view
from forms.naive import naive_partial_conv2d
from operators.declaration import Layer, Operator, Problem

CHANNELS = [(3, 64), (64, 128), (128, 256), (256, 512)]
LAYERS = [
    Layer(f"msfef{stage}", "msfef", (c_in,), c_out, (3, 5, 7), stride=2, out_size=256 >> stage, stage=stage)
    for stage, (c_in, c_out) in enumerate(CHANNELS, start=1)
]


def arguments(
    problem: Problem,
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor], Tensor | None, int]:
    x, mask = problem.features[0], problem.masks[0]
    return x, mask, problem.weights, problem.biases, problem.scales, problem.layer.stride


def naive_msfef(
    x: Tensor,
    mask: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    scales: Tensor,
    stride: int,
    *ones: Tensor,
) -> tuple[Tensor, Tensor]:
    """Three partial convolutions, scaled and added, under the mask of the smallest (the first)."""
    parameters = zip(weights, biases, ones, strict=True)
    branches = [
        naive_partial_conv2d(x, mask, w, b, stride, w.shape[-1] // 2, 1, 1, o) for w, b, o in parameters
    ]
    out = sum(scale.view(1, -1, 1, 1) * branch for scale, (branch, _) in zip(scales, branches, strict=True))
    new_mask = branches[0][1]
    return out * new_mask, new_mask


def hybrid_msfef(
    x: Tensor,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    scales: Tensor,
    stride: int,
) -> tuple[Tensor, Tensor]:
    """r7 conv(V3 + V5 + V7) + (r3 - r7) conv(V3) + (r5 - r7) conv(V5), V_k = scale_k W_k, kernels rising.

    The corrections matter near holes and borders alone, but gathering just those pixels needs their number on
    the host, so they are dense too.
    """
    sizes = [weight.shape[-1] for weight in weights]
    with torch.no_grad():
        counts = [count_valid(x, mask, k, stride) for k in sizes]
        alive = counts[0] > 0
        ratios = [ratio_of(k * k, count, alive) for k, count in zip(sizes, counts, strict=True)]
        new_mask = alive.to(x.dtype)
    masked_x = masked(x, mask)
    folded = [scale.view(-1, 1, 1, 1) * weight for scale, weight in zip(scales, weights, strict=True)]
    merged = folded[-1]
    for weight in folded[:-1]:
        merged = merged + F.pad(weight, [(sizes[-1] - weight.shape[-1]) // 2] * 4)
    out = F.conv2d(masked_x, merged, None, stride, sizes[-1] // 2) * ratios[-1].to(x.dtype)
    for weight, ratio in zip(folded[:-1], ratios[:-1], strict=True):
        raw = F.conv2d(masked_x, weight, None, stride, weight.shape[-1] // 2)
        out = torch.addcmul(out, raw, (ratio - ratios[-1]).to(x.dtype))
    beta = sum(scale * bias for scale, bias in zip(scales, biases, strict=True))
    return torch.addcmul(out, view(beta), new_mask), new_mask.expand(x.shape[0], -1, -1, -1)


OPERATOR = Operator(
    "msfef",
    layers=LAYERS,
    quick=LAYERS,
    kernels=LAYERS[:2],  # 3 channels in, and more
    arguments=arguments,
    naive_c=naive_msfef,
    naive_1=naive_msfef,
    hybrid=hybrid_msfef,
    thorough=True,
    scaled=True,
)
