"""See `pconv_ext.inpainting.model`."""

from ._doors import open_door
from .inpainting.model import *  # noqa: F403

open_door(__name__)
