"""See `pconv_ext.inpainting.ablation`."""

from ._doors import open_door
from .inpainting.ablation import *  # noqa: F403

open_door(__name__)
