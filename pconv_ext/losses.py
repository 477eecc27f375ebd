"""See `pconv_ext.inpainting.losses`."""

from ._doors import open_door
from .inpainting.losses import *  # noqa: F403

open_door(__name__)
