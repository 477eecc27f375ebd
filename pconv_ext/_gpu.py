"""What the GPU backends share: which devices and calls they can take, and their registration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from . import ops
from ._geometry import Geometry, centred
from .ops.call import Call, Needs, Source

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CAPABILITY = (8, 0)
_MAX_PIXELS = 2**28
_MAX_WINDOW = 2**31  # elements between the first and the last tap of a window


def reason() -> str:
    """Why no GPU backend can run here, in one line; "" if one can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    reasons = [device_refusal(i) for i in range(torch.cuda.device_count())]
    return "" if "" in reasons else reasons[0]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def device_refusal(index: int) -> str:
    """Why the kernels cannot run on this device; "" if they can."""
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
    return device_refusal(x.device.index) if x.is_cuda else ""


def _check_size(backend: str, op: str, args: tuple[Any, ...]) -> None:
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
            f"{op}: backend {backend!r} counts at most 2^28 pixels, x {list(x.shape)} has more; "
            "split the batch"
        )
    channels = -(-max(channels, args[0].shape[1], weights[0].shape[0]) // 8) * 8  # copies are filled up
    if max(weight.shape[2] for weight in weights) * dilation * width * channels >= _MAX_WINDOW:
        raise ValueError(
            f"{op}: backend {backend!r} takes windows that span less than 2^31 elements, those of x "
            f"{list(x.shape)} span more"
        )


def register(
    backend: str, dispatch_key: str, using: Callable[[], AbstractContextManager[None]]
) -> tuple[torch.library.Library, Any]:
    """Register the operators of ``pconv_ext_BACKEND``; `using` is the context that chooses the kernels.

    Returns:
        The library, which must be kept, and the namespace in ``torch.ops``.
    """
    library = ops.register(f"pconv_ext_{backend}")
    for name in ops.NAMES:
        library.impl(name, _implementation(backend, name, using), dispatch_key)
    return library, getattr(torch.ops, f"pconv_ext_{backend}")


def _implementation(backend: str, name: str, using: Callable[[], AbstractContextManager[None]]) -> Any:
    operator = getattr(ops, name.removesuffix("_backward"))
    fake = operator.fake_backward if name.endswith("_backward") else operator.fake

    def kernel(*args: Any) -> Any:
        if not name.endswith("_backward"):
            _check_size(backend, name, args)
        if args[0].shape[0] == 0:  # nothing to launch: sums over an empty batch are zero
            return tree_map_only(Tensor, Tensor.zero_, fake(*args))
        from .kernels import operators

        with using():
            if not name.endswith("_backward"):
                return operators.forward(_CALLS[name](*args))
            return _backward(operators, name.removesuffix("_backward"), args)

    return kernel


def _partial_conv2d(x, mask, weight, bias, stride, padding, dilation, groups):  # type: ignore
    biases = [] if bias is None else [bias]
    geometry = Geometry(stride, padding, dilation, groups)
    return Call("partial_conv2d", (Source(x, mask),), [weight], biases, None, geometry)


def _msfef(x, mask, weights, biases, scales, stride):  # type: ignore
    geometry = centred(max(weight.shape[2] for weight in weights), stride)
    return Call("msfef", (Source(x, mask),), weights, biases, scales, geometry)


def _upcat(x_low, mask_low, skip, mask_skip, weight, bias):  # type: ignore
    biases = [] if bias is None else [bias]
    sources = (Source(x_low, mask_low, True), Source(skip, mask_skip))
    return Call("upcat_partial_conv2d", sources, [weight], biases, None, centred(weight.shape[2], [1, 1]))


_CALLS = {"partial_conv2d": _partial_conv2d, "msfef": _msfef, "upcat_partial_conv2d": _upcat}


def _backward(operators, op, args):  # type: ignore
    grad_out, *rest, needs = args
    if op == "partial_conv2d":
        rest.insert(3, None)
        wanted = Needs(needs[:1], *needs[1:])
    elif op == "upcat_partial_conv2d":
        rest.append(None)
        wanted = Needs(needs[:2], *needs[2:])
    else:
        wanted = Needs(needs[:1], *needs[1:])
    call = _CALLS[op](*rest)
    grads = operators.backward(call, grad_out, wanted)
    none = call.like.new_empty([0], dtype=torch.float32)
    sources = [none.clone() if grad is None else grad for grad in grads.sources]
    if op == "msfef":
        scales = none.clone() if grads.scales is None else grads.scales
        return (*sources, list(grads.weights), list(grads.biases), scales)
    return (*sources, *(grads.weights or [none.clone()]), *(grads.biases or [none.clone()]))
