"""The CUDA C++ backend: where it can run, and its registration. Its first call loads the kernels' library."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import _gpu

LIBRARY = Path(__file__).parent / "libpconv_cuda.so"

_MAX_KERNELS, _MAX_STRIDE = 31, 128  # of the tables in csrc/cuda/gather_feed.h

#: Why the backend is not available in this process, as far as can be told without looking for a GPU.
REASON = "" if LIBRARY.is_file() else f"{LIBRARY} is not there, since pconv_ext was built without nvcc"


def reason() -> str:
    """Why the backend is not available here, in one line; "" if it is."""
    return REASON or _gpu.reason()


def refusal(op: str, args: tuple[Any, ...]) -> str:
    """Why the kernels cannot compute ``op(*args)``: as `_gpu.refusal`, and tables of fixed sizes."""
    if op == "msfef" and len(args[2]) > _MAX_KERNELS:
        return f"it takes at most {_MAX_KERNELS} kernels, weights has {len(args[2])}"
    strides = args[5] if op == "msfef" else args[4] if op == "partial_conv2d" else [1]
    if max(strides) > _MAX_STRIDE:
        return f"it takes strides of at most {_MAX_STRIDE}, stride is {list(strides)}"
    return _gpu.refusal(op, args)


@lru_cache(maxsize=1)
def _kernels() -> Any:
    from .kernels import cuda

    return cuda.load(LIBRARY)


def _using() -> AbstractContextManager[None]:
    from .kernels import kernel_set

    return kernel_set.using(_kernels())


_library, OPERATORS = _gpu.register("cuda", "CUDA", _using)
