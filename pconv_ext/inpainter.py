"""See `pconv_ext.inpainting.inpainter`."""

from ._doors import open_door
from .inpainting.inpainter import *  # noqa: F403

open_door(__name__)
