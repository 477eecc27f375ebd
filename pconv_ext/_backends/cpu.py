"""The CPU backend: the extension module ``pconv_ext._C`` adds its kernels to the namespace ``pconv_ext``."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from .. import ops
from . import algorithm
from .backend import Backend

_MODULE = "pconv_ext._C"


def _load() -> str:
    """Import the extension module. "" if its kernels can be used, else why not, in one line."""
    folder = Path(__file__).parents[1]
    if not any(folder.glob("_C.*")):
        return (
            f"{_MODULE} is not built in {folder}: run `pip install .` in the checkout, "
            "and leave the checkout to use an installed copy"
        )
    try:
        module = importlib.import_module(_MODULE)
    except ImportError as error:
        return f"{_MODULE} cannot be loaded: {' '.join(str(error).split())}"
    missing = ops.missing("pconv_ext", "CPU")
    if missing:
        return f"{_MODULE} has no CPU kernel for {', '.join(missing)}"
    if not hasattr(module, "set_algorithm"):
        return f"{_MODULE} in {folder} is older than the rest of the package: run `pip install .` again"
    algorithm.keep_in(module)
    return algorithm.MISTAKE


_library = ops.register("pconv_ext")  # before the extension module, which adds kernels to these schemas
BACKEND = Backend("cpu", torch.ops.pconv_ext, _load())
