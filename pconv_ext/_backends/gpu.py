"""What the GPU backends share: which devices and calls they can take, and their registration."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import ops
from .._geometry import centred
from ..ops.call import Call

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


def refusal(call: Call) -> str:
    """Why the kernels cannot compute `call`; "" if they can."""
    if [source.up for source in call.sources] not in ([False], [True, False]):
        return "it takes one feature map, or an up-sampled one and then one of the size of the output"
    kh, kw = call.weights[0].shape[2:]
    if len(call.sources) > 1 and (
        len(call.weights) > 1 or call.scales is not None or call.geometry != centred(kh, [1, 1]) or kh != kw
    ):
        return "it takes an up-sampled feature map under one square window, centred, at stride 1"
    if len(call.weights) > 1 and call.scales is None:
        return f"it takes several weights with scales alone, there are {len(call.weights)}"
    x = call.like
    if x.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, x is {x.dtype}"
    if call.geometry.groups != 1:
        return f"it has no grouped convolution, groups is {call.geometry.groups}"
    for source in call.sources:
        if source.mask is not None and source.mask.shape[1] != 1:
            return f"it takes masks of one plane, mask has shape {list(source.mask.shape)}"
    return device_refusal(x.device.index) if x.is_cuda else ""


def _check_size(backend: str, call: Call) -> None:
    """Raise ValueError where an index would not fit: pixels and taps are int32, elements int64.

    Not part of `refusal`, which torch.compile traces with symbolic sizes.
    """
    x = call.like
    n, channels, height, width = x.shape
    top, bottom, left, right = call.geometry.padding
    height, width = height + top + bottom, width + left + right
    if n * height * width > _MAX_PIXELS:
        raise ValueError(
            f"{call.op}: backend {backend!r} counts at most 2^28 pixels, x {list(x.shape)} has more; "
            "split the batch"
        )
    channels = max(call.weights[0].shape[0], *[source.x.shape[1] for source in call.sources])
    span = max([weight.shape[2] for weight in call.weights]) * call.geometry.dilation[0] * width
    if span * -(-channels // 8) * 8 >= _MAX_WINDOW:  # copies are filled up to eight channels
        raise ValueError(
            f"{call.op}: backend {backend!r} takes windows that span less than 2^31 elements, those of x "
            f"{list(x.shape)} span more"
        )


def register(
    backend: str, dispatch_key: str, kernels: Callable[[], Any]
) -> tuple[torch.library.Library, Any]:
    """Register the operators of ``pconv_ext_BACKEND``; `kernels` loads its kernels once and tells them.

    Returns:
        The library, which must be kept, and the namespace in ``torch.ops``.
    """
    library = ops.register(f"pconv_ext_{backend}")
    for operator in ops.OPERATORS.values():
        for name, kernel in zip(operator.names, _implementations(backend, operator, kernels), strict=True):
            library.impl(name, kernel, dispatch_key)
    return library, getattr(torch.ops, f"pconv_ext_{backend}")


@lru_cache(maxsize=1)
def _host() -> tuple[Any, Any]:
    """The host code of the kernels and what chooses them, imported by the first call."""
    from ..kernels import operators
    from ..kernels.host import kernel_set

    return operators, kernel_set.using


def _implementations(
    backend: str, operator: ops.Operator, kernels: Callable[[], Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`operator` and its backward. An empty batch launches nothing: sums over it are zero."""

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        call = operator.call(*arguments)
        _check_size(backend, call)
        if call.like.shape[0] == 0:
            return tree_map_only(Tensor, Tensor.zero_, operator.fake(*arguments))
        host, using = _host()
        with using(kernels()):
            return host.forward(call)

    def backward(grad_out: Tensor, *saved: Any) -> tuple[Any, ...]:
        call = operator.backward_call(saved[:-1])
        if call.like.shape[0] == 0:
            return tree_map_only(Tensor, Tensor.zero_, operator.fake_backward(grad_out, *saved))
        host, using = _host()
        with using(kernels()):
            return operator.results(host.backward(call, grad_out, operator.needs(saved[-1])), call.like)

    return forward, backward
