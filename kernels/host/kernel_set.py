"""Which kernels the host code launches: Triton's or CUDA's, which take the same arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple


class Kernels(NamedTuple):
    """Each is called as ``kernel[grid](**arguments)``, with all arguments by their names.

    What Triton's compiler is told besides, ``num_warps`` and ``num_stages``, others leave unused.
    """

    forward_windows: Any
    adjoint_windows: Any
    upcat_windows: Any
    low_adjoint_windows: Any
    compact: Any
    fold_bias: Any
    pack_taps: Any
    pack_rows: Any
    fold_low: Any
    gather_matmul: Any
    scale_gradient: Any
    tap_matmul: Any
    finish: Any
    # CUDA's alone. They have ``kernel.plan(**sizes)``, which tells whether and how they compute a problem:
    few_inputs: Any = None
    few_outputs: Any = None
    few_inputs_gradients: Any = None
    few_outputs_gradients: Any = None


class Plan(NamedTuple):
    """How a kernel of CUDA's alone computes a problem."""

    made: Any  # what its `plan` told
    sizes: dict[str, Any]  # what that was asked with, and a launch takes as well


_current: ContextVar[Kernels] = ContextVar("kernels")


@contextlib.contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """Context in which `current` is `kernels`."""
    token = _current.set(kernels)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Kernels:
    """The kernels to launch."""
    return _current.get()


def triton() -> Kernels:
    """The Triton kernels; imports Triton."""
    from ..triton import gather, gradients, rows, weights, wgrad

    modules = (gather, gradients, rows, weights, wgrad)
    names = [name for name in Kernels._fields if name not in Kernels._field_defaults]
    return Kernels(*(next(getattr(m, name) for m in modules if hasattr(m, name)) for name in names))
