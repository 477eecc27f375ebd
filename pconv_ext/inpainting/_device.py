"""The device that an argument or option names."""

from __future__ import annotations

import torch

from ._arguments import about
from ._weights import reason


def find_device(user: str, device: str | torch.device | None) -> torch.device:
    """`device`, by default a GPU where there is one.

    Raises:
        ValueError: it is no device, or not one that can be used here; names `user`.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
        if found.type not in ("cpu", "cuda"):
            raise TypeError("the operators have kernels for cpu and cuda")
    except (AssertionError, RuntimeError, TypeError) as error:  # which depends on how torch was built
        raise ValueError(
            f"{about(user, 'device')} must be one that torch can use here, got {str(device)!r} "
            f"({reason(error)})"
        ) from error
    return found
