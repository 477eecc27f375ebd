"""The operators under PyTorch's dispatcher: schema, fake, autograd formula and autocast of each, one file
apiece.

A backend is a namespace: kernels that were compiled for a device are the CPU or CUDA implementation of the
``pconv_ext::`` operators. `register` gives a namespace its operators; it is called once for each.
"""

from __future__ import annotations

import torch

from . import msfef, partial_conv2d, upcat_partial_conv2d

#: What an implementation of a namespace has to provide.
NAMES = tuple(
    name + suffix
    for name in ("partial_conv2d", "msfef", "upcat_partial_conv2d")
    for suffix in ("", "_backward")
)


def register(namespace: str) -> torch.library.Library:
    """Define all operators in `namespace`, without kernels. They live as long as the returned library."""
    library = torch.library.Library(namespace, "DEF")
    partial_conv2d.register(library)
    msfef.register(library)
    upcat_partial_conv2d.register(library)
    return library


def missing(namespace: str, device_key: str) -> list[str]:
    """Names of the operators that have no kernel for `device_key` ("CPU", "CUDA") in `namespace`."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [name for name in NAMES if not has(f"{namespace}::{name}", device_key)]
