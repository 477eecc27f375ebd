"""Files of rasters: how their arrays are read, and that nothing changes in them but what is filled."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal, assert_equal
from support.rasters import H, W, smooth

from pconv_ext.rasters import open_raster

rasterio = pytest.importorskip("rasterio")
xarray = pytest.importorskip("xarray")


def fives(values):
    """A filling that puts 5.3 into every gap."""
    return np.where(np.isnan(values), 5.3, values), np.isnan(values)


def filled(path, output, channels, variables=()):
    output.write_bytes(open_raster(path, channels, variables).filled(fives))
    return output


LAYOUTS = [
    ((H, W), 1, (), lambda a: a[None]),
    ((1, H, W), 1, (), lambda a: a),
    ((H, W, 1), 1, (), lambda a: a.transpose(2, 0, 1)),
    ((4, H, W), 1, (4,), lambda a: a[2][None]),
    ((3, H, W), 3, (), lambda a: a),
    ((H, W, 3), 3, (), lambda a: a.transpose(2, 0, 1)),
    ((4, 3, H, W), 3, (4,), lambda a: a[2]),
    ((4, H, W, 3), 3, (4,), lambda a: a[2].transpose(2, 0, 1)),
    ((2, 4, 3, H, W), 3, (2, 4), lambda a: a[1, 3]),
]


@pytest.mark.parametrize(
    ("shape", "channels", "items", "expected"), LAYOUTS, ids=lambda one: "" if callable(one) else str(one)
)
@pytest.mark.parametrize("end", [".npy", ".npz"])
def test_layouts(tmp_path, shape, channels, items, expected, end):
    array = np.random.default_rng(0).standard_normal(shape)
    file = tmp_path / f"a{end}"
    np.save(file, array) if end == ".npy" else np.savez(file, field=array)
    raster = open_raster(file, channels)
    assert len(raster) == np.prod(items, dtype=int)
    assert raster.size == (H, W)
    index = {(): 0, (4,): 2, (2, 4): 7}[items]
    assert_array_equal(raster.read(index), expected(array))


def test_an_array_for_each_channel(tmp_path):
    u, v = np.random.default_rng(0).standard_normal((2, 5, H, W))
    np.savez(tmp_path / "a.npz", u=u, v=v, time=np.arange(5))
    assert_array_equal(open_raster(tmp_path / "a.npz", 2).read(3), np.stack([u[3], v[3]]))
    assert_array_equal(open_raster(tmp_path / "a.npz", 2, ["v", "u"]).read(3), np.stack([v[3], u[3]]))
    assert_array_equal(open_raster(tmp_path / "a.npz", 1, ["v"]).read(3), v[3][None])


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((3, H, 3), 3, "which axis is that of the 3 channels cannot be told, it has an array [3, 21, 3]"),
        (
            (H, W),
            3,
            "must hold rasters of 3 channels, [C, H, W], [H, W, C] or 3 arrays of [H, W], it has",
        ),
        ((2, H, W), 3, "it has an array [2, 21, 30]"),
        ((W,), 1, "it has an array [30]"),
        ((0, W), 1, "it has an array [0, 30]"),
    ],
)
def test_what_holds_no_such_rasters(tmp_path, shape, channels, message):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(ValueError, match=f"a.npy.*{re.escape(message)}"):
        open_raster(tmp_path / "a.npy", channels)


def test_other_files(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY nothing")
    (tmp_path / "a.nc").write_bytes(b"CDF nothing")
    (tmp_path / "a.tif").write_bytes(b"II*\0 nothing")
    np.save(tmp_path / "objects.npy", np.array([[object()]]), allow_pickle=True)
    np.save(tmp_path / "complex.npy", np.zeros((H, W), complex))
    for name in ("a.npy", "a.nc", "a.tif", "objects.npy"):
        with pytest.raises(ValueError, match=f"cannot read raster .*{name}: "):
            open_raster(tmp_path / name, 1)
    with pytest.raises(ValueError, match="rasters must be of real numbers, got complex128"):
        open_raster(tmp_path / "complex.npy", 1).read()
    with pytest.raises(ValueError, match=r"must have one of the extensions \.nc \.nc4 \.npy"):
        open_raster(tmp_path / "a.hdf", 1)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_raster(tmp_path / "b.npy", 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_files_change_in_gaps_alone(tmp_path, dtype, order):
    array = np.asarray(smooth(3, (2,)), dtype, order)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", field=array, note=np.array("kept"))
    new = np.load(filled(tmp_path / "a.npy", tmp_path / "b.npy", 3))
    assert new.dtype == dtype
    assert_array_equal(new, np.where(np.isnan(array), np.array(5.3, dtype), array))
    archive = np.load(filled(tmp_path / "a.npz", tmp_path / "b.npz", 3))
    assert_array_equal(archive["field"], new)
    assert archive["note"] == "kept"


def save_tiff(path, values, **options):
    bands, height, width = values.shape
    profile = {
        "driver": "GTiff",
        "count": bands,
        "height": height,
        "width": width,
        "dtype": values.dtype,
        "crs": "EPSG:32633",
        "transform": rasterio.transform.from_origin(500000, 4600000, 30, 30),
        **options,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        file.update_tags(AREA_OR_POINT="Point", sensor="one")
        file.set_band_description(1, "red edge")


@pytest.mark.parametrize(
    "options", [{}, {"compress": "deflate", "predictor": 3}, {"tiled": True, "compress": "lzw"}], ids=str
)
@pytest.mark.parametrize("bands", [1, 5])
def test_float_tiff(tmp_path, bands, options):
    values = smooth(bands)
    save_tiff(tmp_path / "a.tif", values, nodata=np.nan, **options)
    assert_array_equal(open_raster(tmp_path / "a.tif", bands).read(), values)
    with (
        rasterio.open(tmp_path / "a.tif") as old,
        rasterio.open(filled(tmp_path / "a.tif", tmp_path / "b.tif", bands)) as new,
    ):
        assert_array_equal(new.read(), np.where(np.isnan(values), np.float32(5.3), values))
        assert str(new.profile) == str(old.profile)  # whose nodata is NaN
        assert (new.tags(), new.descriptions) == (old.tags(), old.descriptions)


def test_nodata_of_integers_is_a_gap_and_no_filling(tmp_path):
    values = np.random.default_rng(0).integers(1000, 60000, (3, H, W), np.uint16)
    values[:, 3:6, 4:9] = 5
    save_tiff(tmp_path / "a.tif", values, nodata=5)
    read = open_raster(tmp_path / "a.tif", 3).read()
    assert_array_equal(np.isnan(read), values == 5)
    assert_array_equal(read[values != 5], values[values != 5])
    with rasterio.open(filled(tmp_path / "a.tif", tmp_path / "b.tif", 3)) as new:
        # 5.3 would be 5, which is no number there.
        assert_array_equal(new.read(), np.where(values == 5, 6, values))


@pytest.fixture
def winds(tmp_path):
    """Two variables of three time steps, one of them packed into 16 bits, with what else such a file has."""
    u, v = smooth(2, (3,)).transpose(1, 0, 2, 3)
    data = xarray.Dataset(
        {
            "u": (("time", "lat", "lon"), u, {"units": "m/s", "standard_name": "eastward_wind"}),
            "v": (("time", "lat", "lon"), v, {"units": "m/s"}),
            "quality": (("time", "lat", "lon"), np.ones((3, H, W), np.int8)),
            "lat_bounds": (("lat", "end"), np.zeros((H, 2))),
        },
        {
            "time": ("time", np.arange(3), {"units": "days since 2001-01-01"}),
            "lat": ("lat", np.linspace(40, 60, H), {"bounds": "lat_bounds"}),
            "lon": ("lon", np.linspace(0, 30, W)),
        },
        {"title": "winds", "history": "made"},
    )
    packed = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32768, "zlib": True}
    data.to_netcdf(tmp_path / "a.nc", encoding={"u": packed}, engine="netcdf4")
    extra = xarray.Dataset({"kept": ("n", np.arange(4))})
    extra.to_netcdf(tmp_path / "a.nc", mode="a", group="more", engine="netcdf4")
    return tmp_path / "a.nc"


def test_netcdf(winds, tmp_path):
    raster = open_raster(winds, 2)
    expected = smooth(2, (3,))
    assert len(raster) == 3
    assert_allclose(raster.read(1), expected[1], atol=0.0051)
    assert_array_equal(raster.read(1)[1], expected[1, 1])
    output = filled(winds, tmp_path / "b.nc", 2)
    with (
        xarray.open_dataset(winds, decode_cf=False) as old,
        xarray.open_dataset(output, decode_cf=False) as new,
    ):
        for name in old.variables:
            assert_equal(new[name].attrs, old[name].attrs)  # for which NaN is NaN
            assert new[name].dtype == old[name].dtype
            for key in ("zlib", "chunksizes", "complevel"):
                assert new[name].encoding.get(key) == old[name].encoding.get(key)
            if name not in ("u", "v"):
                assert_array_equal(new[name].values, old[name].values)
        assert new.attrs == old.attrs
        gaps = old["u"].values == -32768
        assert gaps.any()
        assert_array_equal(new["u"].values, np.where(gaps, round((5.3 - 280) * 100), old["u"].values))
        gaps = np.isnan(old["v"].values)
        assert_array_equal(new["v"].values, np.where(gaps, np.float32(5.3), old["v"].values))
    with xarray.open_dataset(output, group="more") as more:
        assert_array_equal(more["kept"], np.arange(4))


def test_variables_of_netcdf(winds):
    expected = smooth(2, (3,))
    assert_array_equal(open_raster(winds, 1, ["v"]).read(2)[0], expected[2, 1])
    with pytest.raises(ValueError, match=r"must hold rasters of 3 channels.* it has u \[3, 21, 30\], v \["):
        open_raster(winds, 3)
    with pytest.raises(ValueError, match=r"has no variable w, it has "):
        open_raster(winds, 1, ["w"])


def test_rows_and_columns_come_last(tmp_path):
    field = xarray.Dataset({"t": (("lat", "lon", "time"), np.zeros((H, W, 3)))})
    field.to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    with pytest.raises(ValueError, match="dimensions of t must be its rows and columns, they are lon, time"):
        open_raster(tmp_path / "a.nc", 1)


def test_old_netcdf(tmp_path):
    values = smooth(1)[0]
    data = xarray.Dataset({"t": (("y", "x"), values)})
    data.to_netcdf(tmp_path / "a.nc", format="NETCDF3_64BIT", engine="netcdf4")
    output = filled(tmp_path / "a.nc", tmp_path / "b.nc", 1)
    with xarray.open_dataset(output) as new:
        assert_array_equal(new["t"].values, np.where(np.isnan(values), np.float32(5.3), values))
