"""See `pconv_ext.inpainting.large`."""

from ._doors import open_door
from .inpainting.large import *  # noqa: F403

open_door(__name__)
