"""Rasters: numbers on a grid, in any number of channels, with gaps. NaN is a hole.

``open_raster("sst.nc", channels=1)`` reads

- ``.npy``: [H, W], [C, H, W] or [H, W, C], and before that any axes of which each index is a raster;
- ``.npz``: such an array, or one of [..., H, W] for each channel;
- ``.nc``: NetCDF, through xarray: variables of (..., row, column), one for each channel, or with a dimension
  of channels before the last two;
- ``.tif``: TIFF of any number of bands, through rasterio; the nodata value is a hole.

xarray, netCDF4 and rasterio are those of ``pip install 'pconv_ext[science]'`` and are imported when a file
needs them.
"""

from .raster import EXTENSIONS, Raster, open_raster

__all__ = ["EXTENSIONS", "Raster", "open_raster"]
