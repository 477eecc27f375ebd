"""See `pconv_ext.inpainting.rasters`."""

from ._doors import open_door
from .inpainting.rasters import *  # noqa: F403

open_door(__name__)
