"""Which backends there are, why some cannot be used here, and which one a call takes.

Each module here has a ``BACKEND``; CONTRIBUTING says what a new one needs.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..ops.call import Call
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


def check_name(op: str, backend: str) -> None:
    """Raise ValueError unless `backend` is "auto" or the name of a backend, available or not."""
    if backend != "auto" and backend not in _BACKENDS:
        raise ValueError(
            f"{op}: backend must be 'auto' or one of {', '.join(map(repr, _BACKENDS))}, got {backend!r}"
        )


def check_available(user: str, backend: str) -> None:
    """Raise ValueError unless `backend` is "auto" or can be used here."""
    check_name(user, backend)
    reason = "" if backend == "auto" else backends()[backend][1]
    if reason:
        raise ValueError(f"{user}: backend {backend!r} is not available: {reason}")


def choose(call: Call, backend: str) -> Any:
    """The ``torch.ops`` namespace that computes `call`; None: the reference.

    Raises ValueError for an unknown backend or one that cannot compute it, RuntimeError with the reason for
    one that is not available here.
    """
    device = call.like.device
    if backend == "auto":
        return _automatic(call, device.type)
    check_name(call.op, backend)
    chosen = _BACKENDS[backend]
    fits = chosen.device_type in (None, device.type)
    reason = chosen.reason if fits else chosen.unavailable()  # on a fitting device there is a GPU
    if reason:
        raise RuntimeError(f"{call.op}: backend {backend!r} is not available: {reason}")
    if not fits:
        raise ValueError(
            f"{call.op}: backend {backend!r} takes tensors on {chosen.device_type}, got x on {device}"
        )
    refusal = chosen.refusal(call)
    if refusal:
        raise ValueError(f"{call.op}: backend {backend!r} cannot take this call: {refusal}")
    return chosen.operators


def _automatic(call: Call, device_type: str) -> Any:
    causes: list[str] = []
    order = _ORDER.get(device_type, ("reference",))
    if device_type == "cuda" and call.like.dtype in measured.DTYPES:
        first = measured.faster(call)
        order = (first, *(name for name in order if name != first)) if first else order
    for name in order:
        backend = _BACKENDS[name]
        if backend.device_type not in (None, device_type):  # Triton's interpreter takes tensors of the CPU
            continue
        cause = backend.reason or backend.refusal(call)
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
