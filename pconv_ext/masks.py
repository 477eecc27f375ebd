"""See `pconv_ext.inpainting.masks`."""

from ._doors import open_door
from .inpainting.masks import *  # noqa: F403

open_door(__name__)
