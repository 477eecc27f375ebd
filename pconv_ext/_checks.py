"""Validation of arguments: every public function calls one of these before anything runs.

Each error names the operator, the argument, what was expected and what came. A wrong type or dtype is a
TypeError; a wrong rank, shape, device, layout or value is a ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autocast
from ._geometry import Geometry, IntOrPair, Padding

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MASK_DTYPES = (torch.bool, torch.uint8, *FLOAT_DTYPES)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _tensor(op: str, name: str, value: Any, shape: str, ndim: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor {shape}, got {type(value).__name__}")
    if value.dim() != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} dimensions {shape}, got shape {list(value.shape)}")
    if value.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be a dense (strided) tensor, got layout {value.layout}")


def _features(op: str, name: str, value: Any) -> None:
    _tensor(op, name, value, "[N, C, H, W]", 4)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {name} must be one of {_names(FLOAT_DTYPES)}, got {value.dtype}")
    if value.shape[1] < 1 or value.shape[2] < 1 or value.shape[3] < 1:
        raise ValueError(f"{op}: {name} must have C, H and W of at least 1, got shape {list(value.shape)}")


def _like(op: str, name: str, value: Tensor, x_name: str, x: Tensor) -> None:
    """Same device as `x`, and same dtype once autocast (if on) has cast both."""
    if value.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of {x_name}, {x.device}, got {value.device}")
    if value.dtype == x.dtype:
        return
    device_type = x.device.type
    castable = value.dtype in FLOAT_DTYPES and torch.float64 not in (value.dtype, x.dtype)
    if not (castable and _autocast.active(device_type)):
        raise TypeError(f"{op}: {name} must have the dtype of {x_name}, {x.dtype}, got {value.dtype}")


def _mask(op: str, name: str, mask: Any, x_name: str, x: Tensor, *, per_channel: bool) -> None:
    if mask is None:
        return
    _tensor(op, name, mask, "[N, 1, H, W] or None", 4)
    if mask.dtype not in MASK_DTYPES:
        raise TypeError(f"{op}: {name} must be one of {_names(MASK_DTYPES)}, got {mask.dtype}")
    if mask.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of {x_name}, {x.device}, got {mask.device}")
    n, c, h, w = x.shape
    channels_fit = mask.shape[1] == 1 or (per_channel and mask.shape[1] == c)
    if not channels_fit or mask.shape[2] != h or mask.shape[3] != w or mask.shape[0] not in (1, n):
        channels = f"1 or {c}" if per_channel else "1"
        raise ValueError(
            f"{op}: {name} must have shape [{n} or 1, {channels}, {h}, {w}] to go with {x_name} "
            f"{list(x.shape)}, got {list(mask.shape)}"
        )


def _vector(op: str, name: str, value: Any, length: int, x_name: str, x: Tensor) -> None:
    _tensor(op, name, value, "[C_out]", 1)
    if value.shape[0] != length:
        raise ValueError(f"{op}: {name} must have shape [{length}], got {list(value.shape)}")
    _like(op, name, value, x_name, x)


def pair(op: str, name: str, value: IntOrPair, minimum: int) -> list[int]:
    """`value` as [vertical, horizontal], each an int of at least `minimum`."""
    values = [value, value] if isinstance(value, int) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, int) for v in values):
        raise TypeError(f"{op}: {name} must be an int or a pair of ints, got {value!r}")
    if len(values) != 2 or values[0] < minimum or values[1] < minimum:
        raise ValueError(f"{op}: {name} must be one or two ints of at least {minimum}, got {value!r}")
    return [values[0], values[1]]


def _padding(
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


def partial_conv2d(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: Padding,
    dilation: IntOrPair,
    groups: int,
) -> Geometry:
    """Check the arguments of ``partial_conv2d`` and return its geometry."""
    op = "partial_conv2d"
    _features(op, "x", x)
    _mask(op, "mask", mask, "x", x, per_channel=True)
    _tensor(op, "weight", weight, "[C_out, C_in / groups, kh, kw]", 4)
    _like(op, "weight", weight, "x", x)
    c_out, c_group, kh, kw = weight.shape
    if not isinstance(groups, int):
        raise TypeError(f"{op}: groups must be an int, got {groups!r}")
    if groups < 1 or x.shape[1] % groups or c_out % groups:
        raise ValueError(
            f"{op}: groups must divide C_in = {x.shape[1]} of x and C_out = {c_out} of weight, got {groups}"
        )
    if min(c_out, kh, kw) < 1 or c_group != x.shape[1] // groups:
        raise ValueError(
            f"{op}: weight must have shape [C_out, {x.shape[1] // groups}, kh, kw] to go with x "
            f"{list(x.shape)} and groups={groups}, got {list(weight.shape)}"
        )
    if bias is not None:
        _vector(op, "bias", bias, c_out, "x", x)
    strides = pair(op, "stride", stride, 1)
    dilations = pair(op, "dilation", dilation, 1)
    geometry = Geometry(strides, _padding(op, padding, (kh, kw), strides, dilations), dilations, groups)
    h, w = x.shape[2], x.shape[3]
    top, bottom, left, right = geometry.padding
    if h + top + bottom <= dilations[0] * (kh - 1) or w + left + right <= dilations[1] * (kw - 1):
        raise ValueError(
            f"{op}: x padded to {h + top + bottom} x {w + left + right} must be at least as large as the "
            f"window of weight, {dilations[0] * (kh - 1) + 1} x {dilations[1] * (kw - 1) + 1}"
        )
    return geometry


def _odd_square(op: str, name: str, weight: Any, c_in: int, x_name: str, x: Tensor) -> None:
    _tensor(op, name, weight, "[C_out, C_in, k, k]", 4)
    _like(op, name, weight, x_name, x)
    c_out, c, kh, kw = weight.shape
    if c_out < 1 or c != c_in or kh != kw or kh % 2 == 0:
        raise ValueError(
            f"{op}: {name} must have shape [C_out, {c_in}, k, k] with k odd, got {list(weight.shape)}"
        )


def msfef(
    x: Tensor,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    scales: Tensor,
    stride: IntOrPair,
) -> list[int]:
    """Check the arguments of ``msfef`` and return the stride as [sh, sw]."""
    op = "msfef"
    _features(op, "x", x)
    _mask(op, "mask", mask, "x", x, per_channel=False)
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"{op}: weights must be a list or tuple of tensors, got {type(weights).__name__}")
    if not weights:
        raise ValueError(f"{op}: weights must hold at least one kernel, got none")
    for i, weight in enumerate(weights):
        _odd_square(op, f"weights[{i}]", weight, x.shape[1], "x", x)
    n, c_out = len(weights), weights[0].shape[0]
    sizes = [weight.shape[2] for weight in weights]
    if len(set(sizes)) != n:
        raise ValueError(f"{op}: weights must have distinct kernel sizes, got {sizes}")
    if any(weight.shape[0] != c_out for weight in weights):
        raise ValueError(f"{op}: weights must agree in C_out, got {[weight.shape[0] for weight in weights]}")
    if biases is not None:
        if not isinstance(biases, (list, tuple)):
            raise TypeError(
                f"{op}: biases must be a list or tuple of tensors or None, got {type(biases).__name__}"
            )
        if len(biases) != n:
            raise ValueError(f"{op}: biases must hold one tensor for each of {n} weights, got {len(biases)}")
        for i, bias in enumerate(biases):
            _vector(op, f"biases[{i}]", bias, c_out, "x", x)
    _tensor(op, "scales", scales, "[n, C_out]", 2)
    if scales.shape[0] != n or scales.shape[1] != c_out:
        raise ValueError(f"{op}: scales must have shape [{n}, {c_out}], got {list(scales.shape)}")
    _like(op, "scales", scales, "x", x)
    return pair(op, "stride", stride, 1)


def upcat_partial_conv2d(
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> None:
    """Check the arguments of ``upcat_partial_conv2d``."""
    op = "upcat_partial_conv2d"
    _features(op, "x_low", x_low)
    _features(op, "skip", skip)
    _like(op, "skip", skip, "x_low", x_low)
    n, h, w = x_low.shape[0], x_low.shape[2], x_low.shape[3]
    if (
        skip.shape[0] != n
        or skip.shape[2] not in (2 * h - 1, 2 * h)
        or skip.shape[3] not in (2 * w - 1, 2 * w)
    ):
        raise ValueError(
            f"{op}: skip must have shape [{n}, C, {2 * h} or {2 * h - 1}, {2 * w} or {2 * w - 1}] to go "
            f"with x_low {list(x_low.shape)}, got {list(skip.shape)}"
        )
    _mask(op, "mask_low", mask_low, "x_low", x_low, per_channel=False)
    _mask(op, "mask_skip", mask_skip, "skip", skip, per_channel=False)
    _odd_square(op, "weight", weight, x_low.shape[1] + skip.shape[1], "x_low", x_low)
    if bias is not None:
        _vector(op, "bias", bias, weight.shape[0], "x_low", x_low)


tensor, features, mask = _tensor, _features, _mask  # for checks elsewhere in the package
