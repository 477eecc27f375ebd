"""Calls that the CPU's kernels compute by Winograd's products, with either algorithm."""

import torch
from support.cases import differentiable

import pconv_ext
from pconv_ext import reference

#: (size, stride) of windows that are covered: 2 to 4 taps for each residue of the stride.
WINDOWS = [(2, 1), (3, 1), (4, 1), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2)]


def gradient_for(operator, args):
    """Normal numbers in shape, dtype and layout of the output."""
    return torch.randn_like(getattr(pconv_ext, operator)(**args, backend="cpu")[0])


def results(operator, args, grad_out, algorithm="auto"):
    """Output and all gradients by name, from the CPU's kernels with `algorithm`."""
    given, leaves = differentiable(args)
    with pconv_ext.set_algorithm(algorithm):
        out, _ = getattr(pconv_ext, operator)(**given, backend="cpu")
        gradients = torch.autograd.grad(out, list(leaves.values()), grad_out)
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def expected_results(operator, args, grad_out, dtype=torch.float64):
    """The same from the reference in `dtype`."""
    given, leaves = differentiable(args, dtype)
    out, _ = getattr(reference, operator)(**given)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad_out.to(out.dtype))
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def same_bits(one, other):
    """Equal bits, NaN and the sign of zero too."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return torch.equal(one.contiguous().view(integers), other.contiguous().view(integers))
