"""What the checks of arguments are made of: an operator's ``check`` calls these before anything runs.

Each error names the operator, the argument, what was expected and what came. A wrong type or dtype is a
TypeError; a wrong rank, shape, device, layout or value is a ValueError.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autocast
from ._geometry import IntOrPair, Padding

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MASK_DTYPES = (torch.bool, torch.uint8, *FLOAT_DTYPES)
_USUAL_STRIDE = 64


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def tensor(op: str, name: str, value: Any, shape: str, ndim: int) -> None:
    """A dense tensor of `ndim` dimensions; `shape` tells them."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor {shape}, got {type(value).__name__}")
    if value.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} dimensions {shape}, got shape {list(value.shape)}")
    if value.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be a dense (strided) tensor, got layout {value.layout}")


def features(op: str, name: str, value: Any) -> None:
    """A feature map [N, C, H, W] with at least one pixel and channel; the batch may be empty."""
    tensor(op, name, value, "[N, C, H, W]", 4)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {name} must be one of {_names(FLOAT_DTYPES)}, got {value.dtype}")
    _, c, h, w = value.shape
    if c < 1 or h < 1 or w < 1:
        raise ValueError(f"{op}: {name} must have C, H and W of at least 1, got shape {list(value.shape)}")


def like(op: str, name: str, value: Tensor, x_name: str, x: Tensor) -> None:
    """Same device as `x`, and same dtype once autocast (if on) has cast both."""
    if value.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of {x_name}, {x.device}, got {value.device}")
    if value.dtype == x.dtype:
        return
    device_type = x.device.type
    castable = value.dtype in FLOAT_DTYPES and torch.float64 not in (value.dtype, x.dtype)
    if not (castable and _autocast.active(device_type)):
        raise TypeError(f"{op}: {name} must have the dtype of {x_name}, {x.dtype}, got {value.dtype}")


def mask(op: str, name: str, mask: Any, x_name: str, x: Tensor, *, per_channel: bool) -> None:
    """A mask that goes with `x`, or None; `per_channel` allows a plane for every channel."""
    if mask is None:
        return
    tensor(op, name, mask, "[N, 1, H, W] or None", 4)
    if mask.dtype not in MASK_DTYPES:
        raise TypeError(f"{op}: {name} must be one of {_names(MASK_DTYPES)}, got {mask.dtype}")
    if mask.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of {x_name}, {x.device}, got {mask.device}")
    (n, c, h, w), (batch, planes, height, width) = x.shape, mask.shape
    channels_fit = planes == 1 or (per_channel and planes == c)
    if not channels_fit or height != h or width != w or (batch != 1 and batch != n):
        channels = f"1 or {c}" if per_channel else "1"
        raise ValueError(
            f"{op}: {name} must have shape [{n} or 1, {channels}, {h}, {w}] to go with {x_name} "
            f"{list(x.shape)}, got {list(mask.shape)}"
        )


def vector(op: str, name: str, value: Any, length: int, x_name: str, x: Tensor) -> None:
    """[length] in the dtype of `x`."""
    tensor(op, name, value, "[C_out]", 1)
    if value.shape[0] != length:
        raise ValueError(f"{op}: {name} must have shape [{length}], got {list(value.shape)}")
    like(op, name, value, x_name, x)


def integer(op: str, name: str, value: Any) -> int:
    """`value` as an int: whatever is one to Python, NumPy's too."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an int, got {value!r}") from None


def pair(op: str, name: str, value: IntOrPair, minimum: int) -> list[int]:
    """`value` as [vertical, horizontal], each an int of at least `minimum`."""
    values = value if isinstance(value, (list, tuple)) else (value, value)
    try:
        pair = [v if type(v) is int else operator.index(v) for v in values]
    except TypeError:
        raise TypeError(f"{op}: {name} must be an int or a pair of ints, got {value!r}") from None
    if len(pair) != 2 or pair[0] < minimum or pair[1] < minimum:
        raise ValueError(f"{op}: {name} must be one or two ints of at least {minimum}, got {value!r}")
    return pair


def bounded(stride: list[int], height: int, width: int) -> list[int]:
    """`stride`, where it is larger than the padded image the size of that, which gives the same one window.

    Kernels, torch's too, lay tables out by the stride. Those of usual ones are small, and not to be compared
    with sizes, which would be a guard of an exported program.
    """
    if max(stride) <= _USUAL_STRIDE:
        return stride
    return [
        s if s <= _USUAL_STRIDE else min(s, size) for s, size in zip(stride, (height, width), strict=True)
    ]


def padding(
    op: str, padding: Padding, kernel: Sequence[int], stride: list[int], dilation: list[int]
) -> list[int]:
    """[top, bottom, left, right]; "same" puts the odd one out at the bottom and the right, as torch does."""
    if not isinstance(padding, str):
        ph, pw = pair(op, "padding", padding, 0)
        return [ph, ph, pw, pw]
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding != "same":
        raise ValueError(f"{op}: padding must be ints, 'same' or 'valid', got {padding!r}")
    if stride != [1, 1]:
        raise ValueError(f"{op}: padding='same' needs stride 1, got stride {stride}")
    total_h, total_w = dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)
    return [total_h // 2, total_h - total_h // 2, total_w // 2, total_w - total_w // 2]


def odd_square(op: str, name: str, weight: Any, c_in: int, x_name: str, x: Tensor) -> tuple[int, int]:
    """A kernel [C_out, c_in, k, k] with k odd, in the dtype of `x`. Returns C_out and k."""
    tensor(op, name, weight, "[C_out, C_in, k, k]", 4)
    like(op, name, weight, x_name, x)
    c_out, c, kh, kw = weight.shape
    if c_out < 1 or c != c_in or kh != kw or kh % 2 == 0:
        raise ValueError(
            f"{op}: {name} must have shape [C_out, {c_in}, k, k] with k odd, got {list(weight.shape)}"
        )
    return c_out, kh
