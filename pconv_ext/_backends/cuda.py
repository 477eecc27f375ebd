"""The CUDA C++ backend: where it can run, and its registration. Its first call loads the kernels' library."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..ops.call import Call
from . import gpu
from .backend import Backend

LIBRARY = Path(__file__).parents[1] / "libpconv_cuda.so"

#: Why the backend is not available in this process, as far as can be told without looking for a GPU.
REASON = "" if LIBRARY.is_file() else f"{LIBRARY} is not there, since pconv_ext was built without nvcc"


def reason() -> str:
    """Why the backend is not available here, in one line; "" if it is."""
    missing = REASON or gpu.reason()
    if missing:
        return missing
    reasons = [_device_refusal(i) for i in range(torch.cuda.device_count())]
    return "" if "" in reasons else reasons[0]


def refusal(call: Call) -> str:
    """Why the kernels cannot compute `call`: as `gpu.refusal`, and what only these cannot."""
    most = _limits()
    if len(call.weights) > most.branches:
        return f"it takes at most {most.branches} kernels, weights has {len(call.weights)}"
    if max(call.geometry.stride) > most.stride:
        return f"it takes strides of at most {most.stride}, stride is {list(call.geometry.stride)}"
    return gpu.refusal(call) or (_device_refusal(call.like.device.index) if call.like.is_cuda else "")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _device_refusal(index: int) -> str:
    return gpu.device_refusal(index) or unsupported(*_build(), torch.cuda.get_device_capability(index))


@lru_cache(maxsize=1)
def _build() -> tuple[str, int, int]:
    from ..kernels.cuda import library

    return library.build_of(LIBRARY)


def library_build() -> str:
    """What the library, where there is one, was built for and with; never raises."""
    try:
        architectures, toolkit, driver = _build()
    except (AttributeError, OSError) as error:
        return f"{LIBRARY} cannot be loaded: {error}"
    known = f"the driver knows CUDA {_version(driver)}" if driver else "no driver"
    return f"for {architectures} with CUDA {_version(toolkit)}; {known}"


def unsupported(architectures: str, toolkit: int, driver: int, capability: tuple[int, int]) -> str:
    """Why code built for `architectures`, as in TORCH_CUDA_ARCH_LIST, does not run on a GPU; "" if it does.

    Versions of CUDA are 13000 for 13.0: the toolkit it was built with, the newest that the driver knows.
    """
    if driver // 1000 < toolkit // 1000:
        return (
            f"the kernels were built with CUDA {_version(toolkit)}, this driver knows CUDA "
            f"{_version(driver)} at most: update it, or build with an older toolkit"
        )
    for major, minor, kind, ptx in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", architectures):
        number = int(major), int(minor)
        same = number == capability
        if same or (kind != "a" and number[0] == capability[0] and number <= capability):
            return ""
        if ptx and not kind and number <= capability and driver >= toolkit:
            return ""
    return (
        f"the kernels were built for {architectures} with CUDA {_version(toolkit)}, this GPU has "
        f"{capability[0]}.{capability[1]} and its driver knows CUDA {_version(driver)}: build for it, see "
        "TORCH_CUDA_ARCH_LIST"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@lru_cache(maxsize=1)
def _kernels() -> Any:
    from ..kernels.cuda import library

    return library.load(LIBRARY)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _limits() -> Any:
    return _limits_of(_kernels())


@lru_cache(maxsize=4)
def _limits_of(kernels: Any) -> Any:
    from ..kernels.cuda import library

    return library.limits(kernels)


# `_kernels` by name: tests put others in its place
_library, _operators = gpu.register("cuda", "CUDA", lambda: _kernels())
BACKEND = Backend("cuda", _operators, REASON, refusal, reason)
