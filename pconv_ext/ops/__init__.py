"""The operators under PyTorch's dispatcher. A module here that has an ``OPERATOR`` defines one.

A backend is a namespace: kernels that were compiled for a device are the CPU or CUDA implementation of its
operators. `register` gives a namespace its operators; it is called once for each.
"""

from __future__ import annotations

import importlib
import pkgutil

import torch

from . import _library
from ._operator import Operator as Operator

_MODULES = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
#: By name.
OPERATORS: dict[str, Operator] = {
    module.OPERATOR.name: module.OPERATOR for module in _MODULES if hasattr(module, "OPERATOR")
}


def register(namespace: str) -> torch.library.Library:
    """Define all operators in `namespace`, without kernels. They live as long as the returned library."""
    library = torch.library.Library(namespace, "DEF")
    for operator in OPERATORS.values():
        _library.define(library, operator)
    return library


def missing(namespace: str, device_key: str) -> list[str]:
    """Names of the operators that have no kernel for `device_key` ("CPU", "CUDA") in `namespace`."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for operator in OPERATORS.values() for name in operator.names]
    return [name for name in names if not has(f"{namespace}::{name}", device_key)]
