"""The arrays in files of each format: read in parts, and written back where values changed."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._extras import require

_EXTRA = "science"


class Arrays(Protocol):
    """Arrays of a file by name.

    Attributes:
        shapes: theirs, by their names.
    """

    shapes: dict[str, tuple[int, ...]]

    def take(self, name: str, place: tuple[int, ...]) -> NDArray[Any]:
        """The part of an array at an index of its first axes, floating, a copy; NaN where there is none."""
        ...

    def changed(self, values: Mapping[str, NDArray[Any]], chosen: Mapping[str, NDArray[np.bool_]]) -> bytes:
        """The file with other values where `chosen`; arrays as ``take(name, ())`` returns them."""
        ...


def floating(raw: NDArray[Any]) -> NDArray[Any]:
    """A copy as float32 where that is exact, else float64."""
    if raw.dtype.kind not in "fiub":
        raise ValueError(f"rasters must be of real numbers, got {raw.dtype}")
    small = raw.dtype.kind in "iub" and raw.dtype.itemsize <= 2
    exact = small or (raw.dtype.kind == "f" and raw.dtype.itemsize <= 4)
    return raw.astype(np.float32 if exact else np.float64)


def cast(values: NDArray[Any], dtype: np.dtype[Any], missing: float | None = None) -> NDArray[Any]:
    """As a file holds them: integers rounded, in their range, and none `missing`, which means hole."""
    if dtype.kind not in "iub":
        return values.astype(dtype)
    if dtype.kind == "b":
        return values >= 0.5
    limits = np.iinfo(dtype)
    whole = np.clip(np.rint(values), float(limits.min), float(limits.max)).astype(dtype)
    if missing is not None:
        beside = dtype.type(missing + 1 if missing < limits.max else missing - 1)
        whole[whole == missing] = beside
    return whole


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What a decoder raises, as a ValueError that names the file."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"cannot read raster {path}: {error or type(error).__name__}") from error


class _Npy:
    def __init__(self, path: Path, variables: tuple[str, ...]) -> None:
        if variables:
            raise ValueError(f"{path}: variables are those of NetCDF files and .npz, it has one array")
        with _reading(path):
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        self.shapes = {"": self._array.shape}

    def take(self, name: str, place: tuple[int, ...]) -> NDArray[Any]:
        return floating(self._array[place])

    def changed(self, values: Mapping[str, NDArray[Any]], chosen: Mapping[str, NDArray[np.bool_]]) -> bytes:
        stream = io.BytesIO()
        np.save(stream, _merged(self._array, values[""], chosen[""]))
        return stream.getvalue()


class _Npz:
    def __init__(self, path: Path, variables: tuple[str, ...]) -> None:
        self._path = path
        with _reading(path):
            arrays = dict(np.load(path, allow_pickle=False))
        self._arrays = arrays
        names = variables or tuple(name for name, array in arrays.items() if array.ndim >= 2)
        _check_there(path, names, arrays)
        self.shapes = {name: arrays[name].shape for name in names}

    def take(self, name: str, place: tuple[int, ...]) -> NDArray[Any]:
        return floating(self._arrays[name][place])

    def changed(self, values: Mapping[str, NDArray[Any]], chosen: Mapping[str, NDArray[np.bool_]]) -> bytes:
        merged = {name: _merged(self._arrays[name], values[name], chosen[name]) for name in values}
        stream = io.BytesIO()
        np.savez_compressed(stream, **{**self._arrays, **merged})
        return stream.getvalue()


class _NetCdf:
    def __init__(self, path: Path, variables: tuple[str, ...]) -> None:
        self._path, self._xarray = path, require("reading NetCDF", "xarray", _EXTRA)
        require("reading NetCDF", "netCDF4", _EXTRA)
        with _reading(path), self._opened(decode_times=False, decode_coords="all") as data:
            fitting = {
                name: one.dims
                for name, one in data.data_vars.items()
                if one.ndim >= 2 and one.dtype.kind == "f"
            }
            names = variables or tuple(fitting)
            _check_there(path, names, data.variables)
            self.shapes = {str(name): data[name].shape for name in names}
            for name in names:
                _check_order(path, name, data[name].dims)

    def _opened(self, **options: Any) -> Any:
        return self._xarray.open_dataset(self._path, engine="netcdf4", cache=False, **options)

    def take(self, name: str, place: tuple[int, ...]) -> NDArray[Any]:
        with _reading(self._path), self._opened(decode_times=False) as data:
            return floating(data[name][place].values)

    def changed(self, values: Mapping[str, NDArray[Any]], chosen: Mapping[str, NDArray[np.bool_]]) -> bytes:
        encode = self._xarray.conventions.encode_cf_variable
        with self._opened(decode_times=False) as data, self._opened(decode_cf=False) as raw:
            merged = {}
            for name, new in values.items():
                known = data[name].variable
                coded = encode(self._xarray.Variable(known.dims, new, known.attrs, known.encoding), name=name)
                kept = raw[name].variable.copy()
                kept.values = _merged(kept.values, coded.values, chosen[name])
                merged[name] = kept
            # Only these variables are written again, in a copy of the file: all else in it stays.
            changed = self._xarray.Dataset(merged)
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder, "raster.nc")
                copy.write_bytes(self._path.read_bytes())
                changed.to_netcdf(copy, mode="a", engine="netcdf4")
                return copy.read_bytes()


class _Tiff:
    def __init__(self, path: Path, variables: tuple[str, ...]) -> None:
        if variables:
            raise ValueError(f"{path}: variables are those of NetCDF files and .npz, a TIFF has bands")
        self._path, self._rasterio = path, require("reading TIFF rasters", "rasterio", _EXTRA)
        with _reading(path), self._opened(path) as data:
            if len({*data.dtypes}) > 1:
                raise ValueError(f"its bands have several types, {', '.join(data.dtypes)}")
            self.shapes = {"": (data.count, data.height, data.width)[data.count == 1 :]}

    @contextmanager
    def _opened(self, path: Path, mode: str = "r") -> Iterator[Any]:
        with warnings.catch_warnings():
            # Pictures of a microscope lie nowhere on the earth.
            warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)
            with self._rasterio.open(path, mode, driver="GTiff") as data:
                yield data

    def take(self, name: str, place: tuple[int, ...]) -> NDArray[Any]:
        with _reading(self._path), self._opened(self._path) as data:
            raw = data.read()
            values = floating(raw)
            for band, missing in enumerate(data.nodatavals):
                if missing is not None:
                    values[band][raw[band] == missing] = np.nan
        return (values[0] if data.count == 1 else values)[place]

    def changed(self, values: Mapping[str, NDArray[Any]], chosen: Mapping[str, NDArray[np.bool_]]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "raster.tif")
            copy.write_bytes(self._path.read_bytes())
            with self._opened(copy, "r+") as data:
                raw = data.read()
                new = (one[""].reshape(raw.shape) for one in (values, chosen))
                for band, (whole, where) in enumerate(zip(*new, strict=True)):
                    raw[band] = _merged(raw[band], whole, where, data.nodatavals[band])
                data.write(raw)
            return copy.read_bytes()


def _merged(
    raw: NDArray[Any], new: NDArray[Any], chosen: NDArray[np.bool_], missing: float | None = None
) -> NDArray[Any]:
    merged = np.array(raw)
    merged[chosen] = cast(new[chosen], merged.dtype, missing)
    return merged


def _check_there(path: Path, names: tuple[str, ...], there: Mapping[Any, Any]) -> None:
    for name in names:
        if name not in there:
            raise ValueError(f"{path} has no variable {name}, it has {', '.join(map(str, there))}")


#: Names by which dimensions of rows and columns are known.
_ACROSS = {"lat", "latitude", "y", "rlat", "northing", "lon", "longitude", "x", "rlon", "easting"}


def _check_order(path: Path, name: str, dims: tuple[Any, ...]) -> None:
    known = [dim for dim in dims[:-2] if str(dim).lower() in _ACROSS]
    if known:
        raise ValueError(
            f"{path}: the last two dimensions of {name} must be its rows and columns, they are "
            f"{', '.join(map(str, dims[-2:]))}, and {', '.join(map(str, known))} comes before"
        )


FORMATS: dict[str, Callable[[Path, tuple[str, ...]], Arrays]] = {
    ".npy": _Npy,
    ".npz": _Npz,
    ".nc": _NetCdf,
    ".nc4": _NetCdf,
    ".tif": _Tiff,
    ".tiff": _Tiff,
}
