"""See `pconv_ext.inpainting.checkpoint`."""

from ._doors import open_door
from .inpainting.checkpoint import *  # noqa: F403

open_door(__name__)
