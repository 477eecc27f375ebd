"""See `pconv_ext.inpainting.batch`."""

from ._doors import open_door
from .inpainting.batch import *  # noqa: F403

open_door(__name__)
