"""What autocast does to a partial convolution: the same as to ``torch.nn.functional.conv2d``."""

from __future__ import annotations

import torch
from torch import Tensor

#: Asked once, because torch 2.11 cannot compile the question.
_DEVICES = frozenset(d for d in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(d))


def active(device_type: str) -> bool:
    """Whether autocast is on for tensors of `device_type`."""
    return device_type in _DEVICES and torch.is_autocast_enabled(device_type)


def cast(tensor: Tensor, device_type: str) -> Tensor:
    """`tensor` in autocast's dtype; float64 stays as it is, as it does for a convolution."""
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def cast_optional(tensor: Tensor | None, device_type: str) -> Tensor | None:
    """`cast`, for an argument that may be None."""
    return None if tensor is None else cast(tensor, device_type)
