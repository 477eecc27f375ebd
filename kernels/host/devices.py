"""What the launches ask of a device, and the tensors that they make there."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pconv_ext._geometry import memory_format


def on(device: torch.device) -> Any:
    """Context in which kernels are launched on `device`."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@lru_cache
def capability(device: torch.device) -> int:
    """GPU generation for tuning.py; the interpreter takes Hopper's configurations."""
    if device.type != "cuda":
        return 90
    return 90 if torch.cuda.get_device_capability(device)[0] >= 9 else 80


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors; few in the emulator, so that blocks there have several tiles."""
    if device.type != "cuda":
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def precision(dtype: torch.dtype) -> str:
    """Of float32 products: what the user chose for cuDNN's convolutions."""
    if dtype != torch.float32:
        return "tf32"
    chosen = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if chosen == "tf32" else "ieee"


def empty_features(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised features [N, C, H, W] in channels-last storage, in dtype and on the device of `like`.

    Where storage is the same in both layouts, strides are those of the layout of `like`: the layout of all
    that follows depends on them.
    """
    ambiguous = shape[1] == 1 or shape[2] * shape[3] == 1
    layout = memory_format(like) if ambiguous else torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def as_laid_out(result: Tensor, like: Tensor) -> Tensor:
    """`result` in the layout of `like`."""
    return result.contiguous(memory_format=memory_format(like))
