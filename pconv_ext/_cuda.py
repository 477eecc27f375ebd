"""The CUDA C++ backend: where it can run, and its registration. Its first call loads the kernels' library."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import _gpu

LIBRARY = Path(__file__).parent / "libpconv_cuda.so"

#: Why the backend is not available in this process, as far as can be told without looking for a GPU.
REASON = "" if LIBRARY.is_file() else f"{LIBRARY} is not there, since pconv_ext was built without nvcc"


def reason() -> str:
    """Why the backend is not available here, in one line; "" if it is."""
    return REASON or _gpu.reason()


@lru_cache(maxsize=1)
def _kernels() -> Any:
    from .kernels import cuda

    return cuda.load(LIBRARY)


def _using() -> AbstractContextManager[None]:
    from .kernels import kernel_set

    return kernel_set.using(_kernels())


_library, OPERATORS = _gpu.register("cuda", "CUDA", _using)
