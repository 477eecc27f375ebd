"""Which backends there are, why some cannot be used here, and which one a call takes.

A backend's module has a ``BACKEND``; CONTRIBUTING says what a new one needs.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..ops import Operator
from . import cpu, cuda, measured, triton
from .backend import Backend

_BACKENDS = {
    "cpu": cpu.BACKEND,
    "cuda": cuda.BACKEND,
    "triton": triton.BACKEND,
    "reference": Backend(None, None, ""),
}
#: "auto" takes the first of these that is available, by device of the tensors, unless another was measured
#: faster (measured.py).
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}

_warned: set[tuple[str, str]] = set()


def backends() -> dict[str, tuple[bool, str]]:
    """Which backends can be used here, and why the others cannot, in one line.

    Returns:
        ``{"cpu": (True, ""), "cuda": (False, "why not"), "triton": ..., "reference": (True, "")}``.
    """
    reasons = {name: backend.unavailable() for name, backend in _BACKENDS.items()}
    return {name: (not reason, reason) for name, reason in reasons.items()}


def check_name(user: str, backend: str, name: str = "backend") -> None:
    """Raise ValueError unless `backend` is "auto" or the name of a backend, available or not.

    `name` is what the user calls this argument.
    """
    if backend != "auto" and backend not in _BACKENDS:
        raise ValueError(
            f"{user}: {name} must be 'auto' or one of {', '.join(map(repr, _BACKENDS))}, got {backend!r}"
        )


def check_available(user: str, backend: str, name: str = "backend") -> None:
    """Raise ValueError unless `backend` is "auto" or can be used here."""
    check_name(user, backend, name)
    reason = "" if backend == "auto" else backends()[backend][1]
    if reason:
        raise ValueError(f"{user}: {name} {backend!r} is not available: {reason}")


def choose(operator: Operator, arguments: tuple[Any, ...], backend: str) -> Any:
    """The ``torch.ops`` namespace that computes `operator` of its checked arguments; None: the reference.

    Raises ValueError for an unknown backend or one that cannot compute it, RuntimeError with the reason for
    one that is not available here.
    """
    device = arguments[0].device
    if backend == "auto":
        return _automatic(operator, arguments, device.type)
    op = operator.name
    check_name(op, backend)
    chosen = _BACKENDS[backend]
    fits = chosen.device_type in (None, device.type)
    reason = chosen.reason if fits else chosen.unavailable()  # on a fitting device there is a GPU
    if reason:
        raise RuntimeError(f"{op}: backend {backend!r} is not available: {reason}")
    if not fits:
        raise ValueError(
            f"{op}: backend {backend!r} takes tensors on {chosen.device_type}, got x on {device}"
        )
    refusal = chosen.refusal and chosen.refusal(operator.call(*arguments))
    if refusal:
        raise ValueError(f"{op}: backend {backend!r} cannot take this call: {refusal}")
    return chosen.operators


def _automatic(operator: Operator, arguments: tuple[Any, ...], device_type: str) -> Any:
    order = _ORDER.get(device_type, ("reference",))
    call = operator.call(*arguments) if device_type == "cuda" else None  # made where somebody asks for it
    causes: list[str] = []
    if call is not None and call.like.dtype in measured.DTYPES:
        first = measured.faster(call)
        order = (first, *(name for name in order if name != first)) if first else order
    for name in order:
        backend = _BACKENDS[name]
        if backend.device_type not in (None, device_type):  # Triton's interpreter takes tensors of the CPU
            continue
        cause = backend.reason
        if not cause and backend.refusal is not None:
            call = operator.call(*arguments) if call is None else call
            cause = backend.refusal(call)
        if not cause:
            if causes and name == "reference":
                _warn_slow(device_type, "; ".join(causes))
            return backend.operators
        causes.append(f"{name}: {cause}")
    raise AssertionError("the reference is always available")


def _warn_slow(device_type: str, causes: str) -> None:
    if torch.compiler.is_compiling() or (device_type, causes) in _warned:
        return
    _warned.add((device_type, causes))
    warnings.warn(
        f"pconv_ext falls back to its slow reference for {device_type} tensors ({causes})", stacklevel=5
    )
