"""A file of rasters, whatever its format."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import FORMATS, Arrays
from .layout import find_layout

#: Of files that can be opened.
EXTENSIONS = frozenset(FORMATS)


class Raster:
    """Rasters in a file; of `open_raster`.

    Attributes:
        path: of the file.
        size: height and width.
    """

    def __init__(self, path: Path, arrays: Arrays, channels: int) -> None:
        self.path = path
        self._arrays = arrays
        self._layout = find_layout(str(path), arrays.shapes, channels)
        self.size: tuple[int, ...] = self._layout.size

    def __len__(self) -> int:
        """How many rasters: one, or one for each time step or other index of the axes before rows."""
        return self._layout.count

    def read(self, index: int = 0) -> NDArray[Any]:
        """Return raster `index`, floating [C, H, W], NaN = hole; float64 where float32 would not be exact."""
        place = self._layout.place(index)
        return self._layout.joined([self._arrays.take(name, place) for name in self._layout.names])

    def filled(self, fill: Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[np.bool_]]]) -> bytes:
        """Return the content of a file like this one with other values.

        Args:
            fill: called with each raster, as `read` returns it; returns one of other values and, bool of the
                same shape, where they are to be taken. All else in the file stays as it is, bit for bit.
        """
        names = self._layout.names
        values = {name: self._arrays.take(name, ()) for name in names}
        chosen = {name: np.zeros(array.shape, bool) for name, array in values.items()}
        for index in range(len(self)):
            place = self._layout.place(index)
            new = fill(self._layout.joined([values[name][place] for name in names]))
            for parts, all_parts in zip(new, (values, chosen), strict=True):
                for name, part in zip(names, self._layout.parted(parts), strict=True):
                    all_parts[name][place] = part
        return self._arrays.changed(values, chosen)


def open_raster(path: str | os.PathLike[str], channels: int, variables: Sequence[str] = ()) -> Raster:
    """Open a file of rasters.

    Args:
        path: of a file with one of `EXTENSIONS`.
        channels: of a raster.
        variables: of a NetCDF file or ``.npz``, those that hold the channels, in their order. None = all that
            have rows and columns and, in a NetCDF file, floating point numbers.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or does not hold rasters of so many channels; names the file.
        ImportError: what reads its format is missing.
    """
    file = Path(path)
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise ValueError(f"{file} must have one of the extensions {' '.join(sorted(EXTENSIONS))}")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    return Raster(file, kind(file, tuple(variables)), channels)
