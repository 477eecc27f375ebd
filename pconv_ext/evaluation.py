"""See `pconv_ext.inpainting.evaluation`."""

from ._doors import open_door
from .inpainting.evaluation import *  # noqa: F403

open_door(__name__)
