"""In Triton's interpreter: every access of a kernel is inside one of its launch's tensors, and aligned."""

from functools import lru_cache

import numpy as np
import torch
from support.emulated_cuda import extent


class Launch:
    """What the kernel under way may touch; the interpreter runs one at a time."""

    name = ""
    firsts = ends = np.zeros(0, np.uint64)  # ascending; each end the largest of those until there

    @classmethod
    def begin(cls, name, tensors):
        extents = np.array(sorted(map(extent, tensors)), np.uint64).reshape(-1, 2)
        cls.name, cls.firsts = name, extents[:, 0]
        cls.ends = np.maximum.accumulate(extents[:, 1])

    @classmethod
    def check(cls, pointers, mask, what):
        """Raise AssertionError unless all elements of a block of pointers are well where `mask` is true."""
        size = np.uint64(max(1, pointers.dtype.scalar.element_ty.primitive_bitwidth // 8))
        at = pointers.data.astype(np.uint64)[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
        which = np.searchsorted(cls.firsts, at, side="right") - 1
        outside = which < 0
        outside[~outside] = at[~outside] + size > cls.ends[which[~outside]]
        assert not outside.any(), f"{cls.name}: a {what} of {outside.sum()} elements outside of its tensors"
        misaligned = at % size != 0
        assert not misaligned.any(), f"{cls.name}: a misaligned {what} of {misaligned.sum()} elements"


class Bounded:
    """A kernel of which every launch is checked."""

    def __init__(self, kernel, name):
        self.kernel, self.name = kernel, name

    def __getitem__(self, grid):
        launch = self.kernel[grid]

        def checked(*arguments, **constants):
            Launch.begin(self.name, filter(torch.is_tensor, arguments))
            launch(*arguments, **constants)

        return checked


@lru_cache(maxsize=1)
def hook():
    """Let the interpreter call `Launch.check`, in every kernel from now on."""
    from triton.runtime.interpreter import InterpreterBuilder

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def create_masked_load(self, pointers, mask, *rest):
        Launch.check(pointers, mask, "load")
        return load(self, pointers, mask, *rest)

    def create_masked_store(self, pointers, value, mask, *rest):
        Launch.check(pointers, mask, "store")
        return store(self, pointers, value, mask, *rest)

    InterpreterBuilder.create_masked_load = create_masked_load
    InterpreterBuilder.create_masked_store = create_masked_store


def use():
    """Check all launches of the package's kernels. Triton is imported with the first."""
    from pconv_ext import _backends

    kernels = _backends.triton._kernels

    @lru_cache(maxsize=1)
    def checked():
        hook()
        plain = kernels()
        return type(plain)(*(kernel and Bounded(kernel, name) for name, kernel in plain._asdict().items()))

    _backends.triton._kernels = checked
