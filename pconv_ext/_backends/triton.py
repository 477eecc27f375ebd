"""The Triton backend: where it can run, and its registration. Its first call imports Triton."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from typing import Any

from . import gpu
from .backend import Backend

#: With TRITON_INTERPRET=1, read when Triton is imported, the kernels run on tensors of the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DEVICE_TYPE = "cpu" if INTERPRETED else "cuda"


def _missing() -> str:
    found = importlib.util.find_spec("triton")
    return "" if found else "Triton is not installed, `pip install triton` brings it"


#: Why the backend is not available in this process, as far as can be told without looking for a GPU.
REASON = _missing()


def reason() -> str:
    """Why the backend is not available here, in one line; "" if it is."""
    return REASON or ("" if INTERPRETED else gpu.reason())


@lru_cache(maxsize=1)
def _kernels() -> Any:
    from ..kernels.host import kernel_set

    return kernel_set.triton()


# `_kernels` by name: tests put others in its place
_library, _operators = gpu.register("triton", "CPU" if INTERPRETED else "CUDA", lambda: _kernels())
BACKEND = Backend(DEVICE_TYPE, _operators, REASON, gpu.refusal, reason)
