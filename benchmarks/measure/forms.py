"""The forms of a problem that are measured beside each other: ours, and what it is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

import pconv_ext
from names import COMPILED, GPU_BACKENDS, HYBRID, NAIVE_1, NAIVE_C, PLAIN
from operators import OPERATORS, call
from operators.declaration import Composition, Layer, Problem

BACKENDS = {"cpu": ("cpu",), "cuda": GPU_BACKENDS}


@dataclass
class Form:
    """One way to compute a problem; `run` returns (out, new_mask), new_mask None where the form has none."""

    name: str
    run: Callable[[], tuple[Tensor, Tensor | None]]
    leaves: list[Tensor] = field(repr=False)

    def clear_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


def our_backends(device: str) -> list[str]:
    """The compiled backends available here, else the reference, so that a run always has a column of ours."""
    available = pconv_ext.backends()
    return [name for name in BACKENDS[device] if available[name][0]] or ["reference"]


def naive(problem: Problem, multi_channel: bool, compiled: bool = False) -> Form:
    """The naive form on masks laid out before it is timed; where there is no mask, on ones."""

    def mask_of(x: Tensor, mask: Tensor | None) -> Tensor:
        plane = x.new_ones(x.shape[0], 1, *x.shape[2:]) if mask is None else mask
        return torch.empty_like(x).copy_(plane) if multi_channel else plane  # in the layout of x

    operator = OPERATORS[problem.layer.operator]
    masks = [mask_of(x.detach(), m) for x, m in zip(problem.features, problem.masks, strict=True)]
    ones = [torch.ones_like(w if multi_channel else w[:1, :1], requires_grad=False) for w in problem.weights]
    args = (*operator.arguments(replace(problem, masks=masks)), *ones)
    name, function = (NAIVE_C, operator.naive_c) if multi_channel else (NAIVE_1, operator.naive_1)
    if compiled:
        name, function = COMPILED, compile_for(problem.layer, function)
    return Form(name, lambda: function(*args), problem.leaves)


@lru_cache(maxsize=1)
def compile_for(layer: Layer, function: Composition) -> Composition:
    """One compilation serves all masks of a layer; the reset keeps dynamo under its limit of them."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def hybrid(problem: Problem) -> Form:
    operator = OPERATORS[problem.layer.operator]
    args = operator.arguments(problem)
    return Form(HYBRID, lambda: operator.hybrid(*args), problem.leaves)


def plain(problem: Problem) -> Form:
    """One dense convolution of the layer's shape with the largest kernel; no mask, no up-sampling."""
    x, weight, bias = problem.features[0], problem.weights[-1], problem.biases[-1]
    leaves = [*problem.leaves]
    if len(problem.features) == 2:
        low, skip = (t.detach() for t in problem.features)
        x = torch.cat([F.interpolate(low, scale_factor=2, mode="nearest"), skip], 1).requires_grad_()
        leaves.append(x)
    stride, padding = problem.layer.stride, weight.shape[-1] // 2
    return Form(
        PLAIN, lambda: (F.conv2d(x, weight, bias, stride, padding, 1, problem.layer.groups), None), leaves
    )


def ours(problem: Problem, backend: str) -> Form:
    return Form(backend, lambda: call(pconv_ext, problem, backend=backend), problem.leaves)


def rotating(forms: Sequence[Form]) -> Form:
    """One form over several input sets in turn, so that no call finds its inputs in a cache."""
    turn = itertools.cycle(forms)
    return Form(forms[0].name, lambda: next(turn).run(), [leaf for form in forms for leaf in form.leaves])


def forms_of(problem: Problem, device: str, compiled: bool) -> list[Form]:
    """Ours first, the plain convolution last; `compiled` adds the naive form under torch.compile."""
    grouped = device == "cuda" and problem.layer.groups > 1  # no kernel on a GPU
    forms = [ours(problem, one) for one in (["reference"] if grouped else our_backends(device))]
    forms += [naive(problem, multi_channel=True), naive(problem, multi_channel=False)]
    if compiled:
        forms.append(naive(problem, multi_channel=False, compiled=True))
    if device == "cuda":
        forms.append(hybrid(problem))
    return [*forms, plain(problem)]
