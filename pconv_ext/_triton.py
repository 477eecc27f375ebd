"""The Triton backend: where it can run, which calls it can take, and its registration.

Triton itself and the kernels are imported by the first call.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from . import ops

NAMESPACE = "pconv_ext_triton"
#: With TRITON_INTERPRET=1, read when Triton is imported, the kernels run on tensors of the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DEVICE_TYPE = "cpu" if INTERPRETED else "cuda"

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CAPABILITY = (8, 0)
_MAX_PIXELS = 2**28
_MAX_WINDOW = 2**31  # elements between the first and the last tap of a window


def _missing() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, `pip install triton` brings it"
    return ""


#: Why the backend is not available in this process, as far as can be told without looking for a GPU.
REASON = _missing()


def reason() -> str:
    """Why the backend is not available here, in one line; "" if it is."""
    if REASON or INTERPRETED:
        return REASON
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    reasons = [_device_refusal(i) for i in range(torch.cuda.device_count())]
    return "" if "" in reasons else reasons[0]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _device_refusal(index: int) -> str:
    if torch.version.hip is not None:
        return "the kernels are tuned and tested for NVIDIA's GPUs only"
    found = torch.cuda.get_device_capability(index)
    if found < _CAPABILITY:
        name = torch.cuda.get_device_name(index)
        return f"a GPU of compute capability 8.0 or higher is needed, {name} has {found[0]}.{found[1]}"
    return ""


def refusal(op: str, args: tuple[Any, ...]) -> str:
    """Why the kernels cannot compute ``op(*args)``, the operator's checked arguments; "" if they can."""
    x: Tensor = args[0]
    if x.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, x is {x.dtype}"
    if op == "partial_conv2d":
        mask, groups = args[1], args[7]
        if groups != 1:
            return f"it has no grouped convolution, groups is {groups}"
        if mask is not None and mask.shape[1] != 1:
            return f"it takes masks of one plane, mask has shape {list(mask.shape)}"
    return "" if INTERPRETED else _device_refusal(x.device.index)


def _check_size(op: str, args: tuple[Any, ...]) -> None:
    """Raise ValueError where an index would not fit: pixels and taps are int32, elements int64.

    Not part of `refusal`, which torch.compile traces with symbolic sizes.
    """
    x: Tensor = args[2] if op == "upcat_partial_conv2d" else args[0]
    n, channels, height, width = x.shape
    weights = args[2] if op == "msfef" else [args[2] if op == "partial_conv2d" else args[4]]
    dilation = 1
    if op == "partial_conv2d":
        top, bottom, left, right = args[5]
        height, width, dilation = height + top + bottom, width + left + right, args[6][0]
    if n * height * width > _MAX_PIXELS:
        raise ValueError(
            f"{op}: backend 'triton' counts at most 2^28 pixels, x {list(x.shape)} has more; split the batch"
        )
    channels = max(channels, args[0].shape[1], weights[0].shape[0], 8)
    if max(weight.shape[2] for weight in weights) * dilation * width * channels >= _MAX_WINDOW:
        raise ValueError(
            f"{op}: backend 'triton' takes windows that span less than 2^31 elements, those of x "
            f"{list(x.shape)} span more"
        )


def _implementation(name: str) -> Any:
    operator = getattr(ops, name.removesuffix("_backward"))
    fake = operator.fake_backward if name.endswith("_backward") else operator.fake

    def kernel(*args: Any) -> Any:
        if not name.endswith("_backward"):
            _check_size(name, args)
        if args[0].shape[0] == 0:  # nothing to launch: sums over an empty batch are zero
            return tree_map_only(Tensor, Tensor.zero_, fake(*args))
        from .kernels import operators

        return getattr(operators, name)(*args)

    return kernel


def _register() -> torch.library.Library:
    library = ops.register(NAMESPACE)
    for name in ops.NAMES:
        library.impl(name, _implementation(name), "CPU" if INTERPRETED else "CUDA")
    return library


_library = _register()
OPERATORS: Any = getattr(torch.ops, NAMESPACE)
