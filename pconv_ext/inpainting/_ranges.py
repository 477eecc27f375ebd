"""Values of rasters, in whatever unit, brought to where networks compute, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arguments import about

Ranges = Sequence[Sequence[float]]

_SHARE = 0.001  # of the values on either side, which a range leaves out: some are errors of measurement
_SAMPLED = 1 << 20  # values of a channel, about, that are looked at


def checked_ranges(user: str, ranges: Any, channels: int) -> list[list[float]] | None:
    """As JSON holds them; TypeError or ValueError unless one finite [low, high] for each channel, or None."""
    if ranges is None:
        return None
    try:
        found = [[float(low), float(high)] for low, high in ranges]
    except (TypeError, ValueError):
        raise TypeError(f"{about(user, 'ranges')} must be pairs [low, high], got {ranges!r}") from None
    if len(found) != channels or not all(math.isfinite(high - low) and low < high for low, high in found):
        raise ValueError(
            f"{about(user, 'ranges')} must be finite pairs [low, high] with low below high, one for each of "
            f"{channels} channels, got {found}"
        )
    return found


def to_unit(values: Tensor, ranges: Ranges | None) -> Tensor:
    """[..., C, H, W] with `ranges` at [0, 1], float32; None = they are there."""
    if ranges is None:
        return values.float()
    low, high = _ends(values, ranges)
    return ((values.double() - low) / (high - low)).float()


def from_unit(values: Tensor, ranges: Ranges | None) -> Tensor:
    """What `to_unit` undoes, float64."""
    if ranges is None:
        return values.double()
    low, high = _ends(values, ranges)
    return values.double() * (high - low) + low


def bounded(output: Tensor, image: Tensor, known: Tensor, ranges: Ranges | None) -> Tensor:
    """The output of a network where values can be: in [0, 1] and, for rasters, where known ones of it are.

    Args:
        output, image: [N, C, H, W], in the unit of `to_unit`.
        known: bool [N or 1, 1, H, W], where the image holds numbers.
        ranges: None = of pictures.
    """
    if ranges is None:
        return output.clamp(0, 1)
    values = torch.where(known, image, 0.5)
    return output.clamp(values.amin((2, 3), True).clamp(max=0), values.amax((2, 3), True).clamp(min=1))


def _ends(values: Tensor, ranges: Ranges) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor(ranges, dtype=torch.float64, device=values.device).mT[..., None, None]
    return low, high


def ranges_of(user: str, count: int, rasters: Iterable[NDArray[Any]]) -> list[list[float]]:
    """The ranges of all but the outermost values of `count` rasters, [C, H, W] with NaN in gaps.

    Raises:
        ValueError: a channel has no numbers; names `user`.
    """
    parts = []
    for raster in rasters:
        flat = raster.reshape(len(raster), -1)
        parts.append(flat[:, :: max(1, flat.shape[1] * count // _SAMPLED)])
    ranges = []
    for channel, values in enumerate(np.concatenate(parts, 1)):
        known = values[np.isfinite(values)]
        if not len(known):
            raise ValueError(f"{user}: channel {channel} of the rasters has no numbers")
        low, high = (float(end) for end in np.quantile(known.astype(np.float64), (_SHARE, 1 - _SHARE)))
        ranges.append([low, high] if low < high else [low - 0.5, low + 0.5])  # of a constant
    return ranges
