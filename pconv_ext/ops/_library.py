"""What the registrations of the operators share.

Autograd is a ``torch.autograd.Function`` with ``forward(ctx, ...)`` under the Autograd key, entered only
when a gradient is asked for. A recorded call with a kernel that does nothing takes 17 us so, 31 us with
``setup_context`` and 29 us with ``torch.library.register_autograd``; one without gradients 10, 10 and 12-14
us (torch 2.13).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _autocast
from .._geometry import memory_format

_AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


class Operator(NamedTuple):
    """One operator of one namespace."""

    forward: Any  # torch._ops.OpOverload
    backward: Any


def define(library: torch.library.Library, name: str, schema: str, fake: Callable[..., Any]) -> Any:
    """Define ``library::name`` with its fake (also its Meta kernel) and return the operator."""
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)
    return getattr(getattr(torch.ops, library.ns), name).default


def register_autograd(library: torch.library.Library, name: str, kernel: Callable[..., Any]) -> None:
    """Install `kernel` for the Autograd key of every device."""
    library.impl(name, kernel, "Autograd")


def register_autocast(
    library: torch.library.Library, operator: Any, cast: Callable[..., tuple[Any, ...]]
) -> None:
    """Run `operator` outside of autocast on ``cast(to, *arguments)``; `to` is autocast's cast of a tensor."""

    def autocast_kernel(device_type: str, *args: Any) -> Any:
        to = functools.partial(_autocast.cast_optional, device_type=device_type)
        with torch.autocast(device_type, enabled=False):
            return operator(*cast(to, *args))

    for device_type, key in _AUTOCAST_DEVICES.items():
        library.impl(operator._schema.name, functools.partial(autocast_kernel, device_type), key)


def below_autograd() -> Any:
    """Context in which an operator's call goes straight to its kernel."""
    return torch._C._AutoDispatchBelowAutograd()


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether to record a call; at a forward-mode level too, so that tangents are refused, not lost."""
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:  # a loop, for half the time of any(...)
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def once_differentiable(
    name: str, backward: Callable[..., tuple[Any, ...]]
) -> Callable[..., tuple[Any, ...]]:
    """Make a second derivative through `backward` an error that says what to do instead.

    As ``torch.autograd.function.once_differentiable``, whose message cannot be chosen: a backward pass with
    ``create_graph=True`` works until something differentiates its result.
    """
    message = (
        f"pconv_ext::{name} is not twice differentiable: its backward was differentiated again. "
        'Use backend="reference" where second derivatives are needed.'
    )

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        with torch.no_grad():
            outputs = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return outputs
        delayed_error: Any = torch._C._functions.DelayedError(message.encode(), len(outputs))
        watched = (None if out is None else out.detach().requires_grad_() for out in outputs)
        return tuple(delayed_error(*watched))

    return wrapper


def fake_feature_gradient(like: Tensor, needed: bool) -> Tensor:
    """Gradient of features [N, C, H, W], contiguous in their layout."""
    return torch.empty_like(like, memory_format=memory_format(like)) if needed else fake_not_needed(like)


def fake_parameter_gradient(like: Tensor, shape: Sequence[int], needed: bool) -> Tensor:
    """Contiguous gradient of `shape` in the dtype of `like`."""
    return like.new_empty(shape) if needed else fake_not_needed(like)


def fake_not_needed(like: Tensor) -> Tensor:
    """What a backward operator returns for a gradient that is not needed."""
    return like.new_empty([0], dtype=torch.float32)
