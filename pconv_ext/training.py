"""See `pconv_ext.inpainting.training`."""

from ._doors import open_door
from .inpainting.training import *  # noqa: F403

open_door(__name__)
