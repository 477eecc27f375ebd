"""What the operators are compared with: the compositions of public repositories, and a plain convolution."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from layers import Layer, Problem, call
from names import COMPILED, NAIVE_1, NAIVE_C, PLAIN
from torch import Tensor

import pconv_ext


@dataclass
class Form:
    """One way to compute a problem; `run` returns (out, new_mask), new_mask None where the form has none."""

    name: str
    run: Callable[[], tuple[Tensor, Tensor | None]]
    leaves: list[Tensor] = field(repr=False)

    def clear_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


def _ratio(count: Tensor, window: float) -> tuple[Tensor, Tensor]:
    new_mask = count.clamp(0, 1)
    return window / (count + 1e-8) * new_mask, new_mask


def naive_partial_conv2d(
    x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """Mask the input, convolve it, convolve the mask with `ones`, multiply by window / (count + epsilon).

    `ones` is [C_out, C_in, k, k] beside a mask [N, C_in, H, W], or [1, 1, k, k] beside a mask [N, 1, H, W].
    """
    padding = weight.shape[-1] // 2
    with torch.no_grad():
        ratio, new_mask = _ratio(F.conv2d(mask, ones, None, stride, padding), ones[0].numel())
    raw = F.conv2d(x * mask, weight, bias, stride, padding)
    bias_view = bias.view(1, -1, 1, 1)
    return ((raw - bias_view) * ratio + bias_view) * new_mask, new_mask


def naive_msfef(
    x: Tensor,
    mask: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    scales: Tensor,
    ones: list[Tensor],
    stride: int,
) -> tuple[Tensor, Tensor]:
    """Three partial convolutions, scaled and added, under the mask of the smallest (the first)."""
    parameters = zip(weights, biases, ones, strict=True)
    branches = [naive_partial_conv2d(x, mask, w, b, o, stride) for w, b, o in parameters]
    out = sum(scale.view(1, -1, 1, 1) * branch for scale, (branch, _) in zip(scales, branches, strict=True))
    new_mask = branches[0][1]
    return out * new_mask, new_mask


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
    return naive_partial_conv2d(x, mask, weight, bias, ones, 1)


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
        ratio, new_mask = _ratio(count, (c_low + c_skip) * ones.numel())
    x = torch.cat([F.interpolate(x_low, scale_factor=2, mode="nearest") * mask_up, skip * mask_skip], 1)
    raw = F.conv2d(x, weight, bias, padding=padding)
    bias_view = bias.view(1, -1, 1, 1)
    return ((raw - bias_view) * ratio + bias_view) * new_mask, new_mask


def naive(problem: Problem, multi_channel: bool, compiled: bool = False) -> Form:
    """The naive form on masks laid out before it is timed; where there is no mask, on ones."""
    layer, weights, biases = problem.layer, problem.weights, problem.biases

    def mask_of(x: Tensor, mask: Tensor | None) -> Tensor:
        plane = x.new_ones(x.shape[0], 1, *x.shape[2:]) if mask is None else mask
        return torch.empty_like(x).copy_(plane) if multi_channel else plane  # in the layout of x

    masks = [mask_of(x.detach(), m) for x, m in zip(problem.features, problem.masks, strict=True)]
    ones = [torch.ones_like(w if multi_channel else w[:1, :1], requires_grad=False) for w in weights]
    x, mask = problem.features[0], masks[0]
    function: Callable[..., tuple[Tensor, Tensor]]
    args: tuple[object, ...]
    if layer.operator == "msfef":
        function, args = naive_msfef, (x, mask, weights, biases, problem.scales, ones, layer.stride)
    elif layer.operator == "partial_conv2d":
        function, args = naive_partial_conv2d, (x, mask, weights[0], biases[0], ones[0], layer.stride)
    else:
        function = naive_upcat_c if multi_channel else naive_upcat_1
        args = (x, mask, problem.features[1], masks[1], weights[0], biases[0], ones[0])
    name = NAIVE_C if multi_channel else NAIVE_1
    if compiled:
        function, name = compile_for(layer, function), COMPILED
    return Form(name, lambda: function(*args), problem.leaves)


@lru_cache(maxsize=1)
def compile_for(
    layer: Layer, function: Callable[..., tuple[Tensor, Tensor]]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """One compilation serves all masks of a layer; the reset keeps dynamo under its limit of them."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def plain(problem: Problem) -> Form:
    """One dense convolution of the layer's shape with the largest kernel; no mask, no up-sampling."""
    x, weight, bias = problem.features[0], problem.weights[-1], problem.biases[-1]
    leaves = [*problem.leaves]
    if len(problem.features) == 2:
        low, skip = (t.detach() for t in problem.features)
        x = torch.cat([F.interpolate(low, scale_factor=2, mode="nearest"), skip], 1).requires_grad_()
        leaves.append(x)
    stride, padding = problem.layer.stride, weight.shape[-1] // 2
    return Form(PLAIN, lambda: (F.conv2d(x, weight, bias, stride, padding), None), leaves)


def ours(problem: Problem, backend: str) -> Form:
    return Form(backend, lambda: call(pconv_ext, problem, backend=backend), problem.leaves)


def rotating(forms: Sequence[Form]) -> Form:
    """One form over several input sets in turn, so that no call finds its inputs in a cache."""
    turn = itertools.cycle(forms)
    return Form(forms[0].name, lambda: next(turn).run(), [leaf for form in forms for leaf in form.leaves])
