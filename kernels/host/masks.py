"""Masks: how the kernels read them, and how they write an updated one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Plane(NamedTuple):
    """A mask as the kernels read it: integers [N, H, W], or nothing."""

    data: Tensor
    strides: tuple[int, int, int]
    kind: int  # MASK of triton/rows.py, valid_at

    @classmethod
    def of(cls, mask: Tensor | None, like: Tensor) -> Plane:
        """The plane of `mask` [N or 1, 1, H, W]; `like` lends a pointer where there is none."""
        if mask is None:
            return cls(like, (0, 0, 0), 0)
        data = mask if mask.dtype == torch.uint8 else mask.view(_BITS[mask.element_size()])
        n, _, h, w = mask.stride()
        return cls(data, (0 if mask.shape[0] == 1 else n, h, w), 2 if mask.is_floating_point() else 1)


def empty_mask(shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised updated mask, in dtype and on the device of `like`; and as kernels can store it."""
    new_mask = torch.empty(shape, dtype=like.dtype, device=like.device)
    return new_mask, new_mask.view(torch.uint8) if new_mask.dtype == torch.bool else new_mask
