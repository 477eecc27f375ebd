"""Data sets of pictures, and of pictures with masks, for `torch.utils.data.DataLoader`.

``InpaintingDataset(PictureDataset(folder("photos"), 256, crop="random"))`` is one to train with.

A picture is an RGB float32 [3, H, W] in [0, 1], a raster float32 [C, H, W] with NaN in gaps; a mask uint8
[1, H, W], 1 = valid, 0 = hole. What an item is depends on the data set's arguments, the epoch and the index
alone, not on workers or the order of calls.

Pillow reads the pictures; torchvision's classes are behind `stanford_cars` and `lsun_church`. All are in the
extra [train] and are imported when first needed.
"""

from .collections import (
    DATASETS,
    RASTERS,
    PictureCollection,
    folder,
    has_split,
    lsun_church,
    rasters,
    stanford_cars,
)
from .datasets import InpaintingDataset, PictureDataset, RasterDataset, to_tensor

__all__ = [
    "DATASETS",
    "RASTERS",
    "InpaintingDataset",
    "PictureCollection",
    "PictureDataset",
    "RasterDataset",
    "folder",
    "has_split",
    "lsun_church",
    "rasters",
    "stanford_cars",
    "to_tensor",
]
