"""Where in the arrays of a file its rasters and their channels lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layout:
    """How arrays hold rasters of [C, H, W].

    Attributes:
        names: of the arrays that hold a channel each, or of the one that holds all.
        items: the axes before the rasters' own, of which each index is a raster.
        axis: of the channels, -3 or -1, in the one array; None = there is none.
        size: height and width.
    """

    names: tuple[str, ...]
    items: tuple[int, ...]
    axis: int | None
    size: tuple[int, ...]

    @property
    def count(self) -> int:
        """Of rasters."""
        return math.prod(self.items)

    def place(self, index: int) -> tuple[int, ...]:
        """Of raster `index`, in each array."""
        return tuple(map(int, np.unravel_index(index, self.items)))

    def joined(self, parts: list[NDArray[Any]]) -> NDArray[Any]:
        """[C, H, W] of the parts of one raster, of each array."""
        if self.axis is None:
            return np.stack(parts)
        return np.moveaxis(parts[0], self.axis, 0)

    def parted(self, raster: NDArray[Any]) -> list[NDArray[Any]]:
        """What `joined` takes, of what it returns."""
        return list(raster) if self.axis is None else [np.moveaxis(raster, 0, self.axis)]


def find_layout(name: str, shapes: Mapping[str, tuple[int, ...]], channels: int) -> Layout:
    """The one way in which arrays of these shapes hold rasters of so many channels.

    Raises:
        ValueError: there is none, or there are two; `name` is the file's.
    """
    names, kinds = tuple(shapes), [*dict.fromkeys(shapes.values())]
    found = []
    if len(kinds) == 1:
        shape = kinds[0]
        if (
            len(names) == channels
            and len(shape) >= 2
            and not (channels == 1 and shape[2:] and shape[-1] == 1)
        ):
            found.append(Layout(names, shape[:-2], None, shape[-2:]))
        if len(names) == 1 and len(shape) >= 3:
            if shape[-3] == channels > 1:
                found.append(Layout(names, shape[:-3], -3, shape[-2:]))
            if shape[-1] == channels:
                found.append(Layout(names, shape[:-3], -1, shape[-3:-1]))
    if len(found) == 1 and 0 not in found[0].items + found[0].size:
        return found[0]
    told = ", ".join(f"{key or 'an array'} {list(shape)}" for key, shape in shapes.items()) or "nothing"
    wanted = f"of {channels} channels, [C, H, W], [H, W, C] or {channels} arrays of [H, W]"
    if len(found) > 1:
        raise ValueError(
            f"{name}: which axis is that of the {channels} channels cannot be told, it has {told}"
        )
    raise ValueError(f"{name} must hold rasters {wanted}, it has {told}")
