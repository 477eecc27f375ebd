"""A stronger composition of the framework's own operators, which a fused kernel must beat to be worth having.

Its dense convolutions of a masked copy, its pooling for the counts, and one coefficient a pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from baselines import Form
from layers import Problem
from names import HYBRID
from torch import Tensor


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask != 0, x, 0)


def _count(x: Tensor, mask: Tensor | None, kernel: int, stride: int) -> Tensor:
    """Valid entries of each centred window, float32 [N or 1, 1, H', W']; exact, being small integers."""
    plane = x.new_ones(1, 1, *x.shape[2:], dtype=torch.float32) if mask is None else mask.float()
    return F.avg_pool2d(plane, kernel, stride, kernel // 2, divisor_override=1)


def _ratio(window: int, count: Tensor, alive: Tensor) -> Tensor:
    return torch.where(alive, window / count.clamp(min=1), 0)


def _view(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)


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
        counts = [_count(x, mask, k, stride) for k in sizes]
        alive = counts[0] > 0
        ratios = [_ratio(k * k, count, alive) for k, count in zip(sizes, counts, strict=True)]
        new_mask = alive.to(x.dtype)
    masked = _masked(x, mask)
    folded = [scale.view(-1, 1, 1, 1) * weight for scale, weight in zip(scales, weights, strict=True)]
    merged = folded[-1]
    for weight in folded[:-1]:
        merged = merged + F.pad(weight, [(sizes[-1] - weight.shape[-1]) // 2] * 4)
    out = F.conv2d(masked, merged, None, stride, sizes[-1] // 2) * ratios[-1].to(x.dtype)
    for weight, ratio in zip(folded[:-1], ratios[:-1], strict=True):
        raw = F.conv2d(masked, weight, None, stride, weight.shape[-1] // 2)
        out = torch.addcmul(out, raw, (ratio - ratios[-1]).to(x.dtype))
    beta = sum(scale * bias for scale, bias in zip(scales, biases, strict=True))
    return torch.addcmul(out, _view(beta), new_mask), new_mask.expand(x.shape[0], -1, -1, -1)


def hybrid_partial_conv2d(
    x: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    kernel = weight.shape[-1]
    with torch.no_grad():
        count = _count(x, mask, kernel, stride)
    raw = F.conv2d(_masked(x, mask), weight, None, stride, kernel // 2)
    return _scaled(raw, kernel * kernel, count, bias)


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
    up = F.interpolate(_masked(x_low, mask_low), scale_factor=2, mode="nearest")
    with torch.no_grad():
        mask_up = None if mask_low is None else F.interpolate(mask_low, scale_factor=2, mode="nearest")
        count = x_low.shape[1] * _count(up, mask_up, kernel, 1)
        count = count + skip.shape[1] * _count(skip, mask_skip, kernel, 1)
    raw = F.conv2d(torch.cat([up, _masked(skip, mask_skip)], 1), weight, None, 1, kernel // 2)
    return _scaled(raw, weight[0].numel(), count, bias)


def _scaled(raw: Tensor, window: int, count: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        alive = count > 0
        ratio, new_mask = _ratio(window, count, alive).to(raw.dtype), alive.to(raw.dtype)
    return torch.addcmul(raw * ratio, _view(bias), new_mask), new_mask.expand(raw.shape[0], -1, -1, -1)


def hybrid(problem: Problem) -> Form:
    layer, x, mask = problem.layer, problem.features[0], problem.masks[0]
    weights, biases, scales = problem.weights, problem.biases, problem.scales
    if layer.operator == "msfef":
        assert scales is not None
        return Form(
            HYBRID, lambda: hybrid_msfef(x, mask, weights, biases, scales, layer.stride), problem.leaves
        )
    if layer.operator == "partial_conv2d":
        conv_args = (x, mask, weights[0], biases[0], layer.stride)
        return Form(HYBRID, lambda: hybrid_partial_conv2d(*conv_args), problem.leaves)
    upcat_args = (x, mask, problem.features[1], problem.masks[1], weights[0], biases[0])
    return Form(HYBRID, lambda: hybrid_upcat(*upcat_args), problem.leaves)
