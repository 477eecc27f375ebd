"""Whether a form computes what the reference computes in float64: only then it is timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import pconv_ext
from measure.forms import Form
from operators import call
from operators.declaration import Problem

# Largest ||got - truth|| / ||truth|| over output and gradients, truth being the reference in float64 on the
# same values. Measured in float32: up to 4e-6, and 1.3e-5 in a bias gradient that sums 262144 terms; 16-bit
# operands bring 2^-9 (bfloat16) or 2^-11 (float16). One wrong pixel in 65536 makes 4e-3.
TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 3e-3,
}
TF32_TOLERANCE = 3e-3  # float32 on a GPU that may use tf32, whose operands are as coarse as float16's


class WrongResult(AssertionError):
    """A form does not compute what the reference computes, so it is not timed."""


@dataclass(frozen=True)
class Truth:
    """Output, mask and gradients of the reference in float64, for the upstream gradient `grad_out`."""

    grad_out: Tensor
    out: Tensor
    new_mask: Tensor
    gradients: list[Tensor]


def truth(problem: Problem) -> Truth:
    exact = problem.to(problem.features[0].device.type, torch.float64)
    out, new_mask = call(pconv_ext.reference, exact)
    generator = torch.Generator(out.device).manual_seed(0)
    values = torch.randn(out.shape, generator=generator, device=out.device)
    layout = torch.channels_last if _is_channels_last(problem.features[-1]) else torch.contiguous_format
    grad_out = values.to(problem.features[0].dtype).contiguous(memory_format=layout)
    gradients = torch.autograd.grad(out, exact.leaves, grad_out.double())
    return Truth(grad_out, out.detach(), new_mask, list(gradients))


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def check(form: Form, problem: Problem, expected: Truth) -> float:
    """The form's largest relative error; raises `WrongResult` above the tolerance or on a different mask."""
    where = f"{form.name} on {problem.layer.name}"
    form.clear_gradients()
    out, new_mask = form.run()
    out.backward(expected.grad_out)
    got = [out.detach(), *(leaf.grad for leaf in problem.leaves)]
    errors = []
    for a, b in zip(got, [expected.out, *expected.gradients], strict=True):
        if a is None:
            raise WrongResult(f"{where}: a gradient is missing for a leaf of shape {list(b.shape)}")
        errors.append(((a.double() - b).norm() / b.norm()).item())
    worst, limit = max(errors), TOLERANCE[out.dtype]
    if out.is_cuda and out.dtype == torch.float32:
        limit = TF32_TOLERANCE
    if not worst <= limit:  # also where it is NaN
        raise WrongResult(f"{where}: errors of output and gradients {errors}, limit {limit}")
    if new_mask is None or not torch.equal(new_mask[:, :1] != 0, expected.new_mask != 0):
        raise WrongResult(f"{where}: its updated mask is not the reference's")
    form.clear_gradients()
    return worst
