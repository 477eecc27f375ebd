"""Whether a backend computes what the reference computes in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import functional, ops, reference
from .problems import Arguments, Problem

#: How far from the reference, of |value| + rms: twice what rounding in the dtype makes, or more on a GPU,
#: whose operands are of that dtype too.
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
GPU_LIMITS = {torch.float32: 2e-2, torch.bfloat16: 4e-2, torch.float16: 5e-3}
#: What torch's convolution of merged weights adds: it rounds them and its result.
DENSE_LIMITS = GPU_LIMITS | {torch.float32: LIMITS[torch.float32]}
#: What kernels compute in, by device.
DTYPES = {"cpu": tuple(LIMITS), "cuda": tuple(GPU_LIMITS)}


class Check(NamedTuple):
    """What came of an operator in a dtype: the largest error, or why there is none."""

    backend: str
    operator: str
    dtype: str
    error: float
    limit: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason and self.error <= self.limit

    @property
    def verdict(self) -> str:
        """In one line."""
        outcome = "ok" if self.passed else f"WRONG, at most {self.limit:g}"
        return " ".join(self.reason.split())[:200] or f"error {self.error:.1e}, {outcome}"


class Truth(NamedTuple):
    """A problem's arguments on a device, and what must come of them."""

    operator: str
    arguments: Arguments
    dtype: torch.dtype
    expected: list[Tensor]  # on the device of the reference


def run(operator: str, *arguments: Any, backend: str) -> tuple[Tensor, Tensor]:
    """out and new_mask of the public function."""
    results: tuple[Tensor, Tensor] = getattr(functional, operator)(*arguments, backend=backend)
    return results


def leaves_of(operator: str, arguments: Arguments) -> tuple[Arguments, list[Tensor]]:
    """The arguments with leaves in the places of features and parameters, and these; they share memory."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1]

    places = ops.OPERATORS[operator].differentiable
    return tuple(
        tree_map_only(Tensor, leaf, argument) if place in places else argument
        for place, argument in enumerate(arguments)
    ), leaves


def truth(problem: Problem, device: torch.device, dtype: torch.dtype, where: torch.device) -> Truth:
    """Fresh arguments in `dtype` on `device`, and the results of the reference in float64 on `where`."""
    arguments = problem.fresh(device, dtype)
    exact = tree_map_only(Tensor, lambda t: t.to(where, torch.float64), arguments)
    expected = _results(getattr(reference, problem.operator), problem.operator, exact, dtype)
    return Truth(problem.operator, arguments, dtype, expected)


def check(backend: str, true: Truth, limit: float) -> Check:
    """Output, mask and all gradients of a backend; what it meets is told, but raised if memory is full."""
    told = str(true.dtype).removeprefix("torch.")
    try:
        function = functools.partial(run, true.operator, backend=backend)
        actual = _results(function, true.operator, true.arguments, true.dtype)
        errors = [_error(a, e) for a, e in zip(actual, true.expected, strict=True)]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return Check(backend, true.operator, told, float("nan"), limit, f"{type(error).__name__}: {error}")
    return Check(backend, true.operator, told, max(errors), limit)


def limit_of(dtype: torch.dtype, backend: str) -> float:
    """How large an error may be, on small maps; infinite where no kernel of a GPU computes in that dtype."""
    limits = {"cpu": LIMITS, "dense": DENSE_LIMITS}.get(backend, GPU_LIMITS)
    return limits.get(dtype, float("inf"))


def _results(
    function: Callable[..., tuple[Tensor, Tensor]], operator: str, arguments: Arguments, dtype: torch.dtype
) -> list[Tensor]:
    """The output, the new mask and the gradients, for random ones in `dtype`, of all that are no masks."""
    given, leaves = leaves_of(operator, arguments)
    with torch.enable_grad():
        out, new_mask = function(*given)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [out.detach(), new_mask, *torch.autograd.grad(out, leaves, slope.to(out.device, out.dtype))]


def _error(actual: Tensor, expected: Tensor) -> float:
    """The largest, of |value| + rms; infinite where one is NaN."""
    actual = actual.to(expected.device, torch.float64)
    scale = expected.abs() + expected.square().mean().sqrt()
    error = ((actual - expected).abs() / scale.clamp(min=1e-300)).nan_to_num(nan=float("inf"))
    return float(error.max())
