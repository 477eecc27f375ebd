"""See `pconv_ext.inpainting.opponents`."""

from ._doors import open_door
from .inpainting.opponents import *  # noqa: F403

open_door(__name__)
