"""Partial convolution for image inpainting (Liu et al., ECCV 2018): fused operators and layers for PyTorch.

In every mask 1 (any nonzero value) is valid and 0 is a hole.
"""

from pathlib import Path as _Path

_package = _Path(__file__).resolve().parent
if not (_package / "kernels").is_dir() and (_package.parent / "kernels" / "__init__.py").is_file():
    __path__.append(str(_package.parent))  # in a checkout `pconv_ext.kernels` is the folder beside this one

from . import compat, functional, reference  # noqa: E402
from ._backends import backends  # noqa: E402
from ._backends.algorithm import set_algorithm  # noqa: E402
from ._prepack import prepack  # noqa: E402
from ._tuning.autotune import set_autotune  # noqa: E402
from .compat import replace_partial_convs  # noqa: E402
from .functional import *  # noqa: E402, F403
from .inpainting import checkpoint as checkpoint  # noqa: E402
from .inpainting import inpainter as inpainter  # noqa: E402
from .inpainting import masks as masks  # noqa: E402
from .inpainting import model as model  # noqa: E402
from .inpainting.inpainter import Inpainter  # noqa: E402
from .inpainting.model import InpaintingNet, composite  # noqa: E402
from .modules import MSFEF, PartialConv2d  # noqa: E402

__all__ = [
    "MSFEF",
    "Inpainter",
    "InpaintingNet",
    "PartialConv2d",
    "backends",
    "compat",
    "composite",
    "prepack",
    "reference",
    "replace_partial_convs",
    "set_algorithm",
    "set_autotune",
]
__all__ += functional.__all__  # a form that type checkers know
