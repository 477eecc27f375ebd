"""See `pconv_ext.inpainting.data`."""

from ._doors import open_door
from .inpainting.data import *  # noqa: F403

open_door(__name__)
