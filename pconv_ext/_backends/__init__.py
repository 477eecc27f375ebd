"""Which backends there are, why some cannot be used here, and which one a call takes.

A backend's module has a ``BACKEND``; CONTRIBUTING says what a new one needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from ..ops import Operator
from ..ops.call import Call
from . import cpu, cuda, dense, first_use, measured, rule, tables, triton
from .backend import Backend

_BACKENDS = {
    "cpu": cpu.BACKEND,
    "cuda": cuda.BACKEND,
    "triton": triton.BACKEND,
    "dense": dense.BACKEND,
    "reference": Backend(None, None, ""),
}

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
        return _automatic(operator, arguments)
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


def candidates(call: Call, names: Iterable[str] | None = None) -> dict[str, str]:
    """Backends for a call, and why one cannot compute it; "" if it can, also where it is banned.

    `names` by default those that the rule has for the device, in its order, and then those that only a
    measurement chooses.
    """
    if names is None:
        device_type, (c_in, c_out, _) = call.like.device.type, measured.size_of(call)
        names = rule.order(device_type, c_in, c_out)
        if device_type == "cpu":
            names = (*names, *rule.CPU_MEASURED)
    return {name: _refusal(name, call) for name in names}


def banned(backend: str, call: Call) -> str:
    """Why `pconv-ext tune` banned a backend from such calls on this device; "" if it did not."""
    bans = tables.of(call.like.device).bans
    if not bans:
        return ""
    return bans.get((backend, call.op, str(measured.dtype_of(call)).removeprefix("torch.")), "")


def _refusal(name: str, call: Call) -> str:
    backend, device_type = _BACKENDS[name], call.like.device.type
    if backend.device_type not in (None, device_type):  # Triton's interpreter takes tensors of the CPU
        return f"it takes tensors on {backend.device_type}"
    return backend.reason or (backend.refusal(call) if backend.refusal else "")


def _automatic(operator: Operator, arguments: tuple[Any, ...]) -> Any:
    device = arguments[0].device
    known = tables.of(device)
    measure = None if torch.compiler.is_compiling() else first_use.measure
    if device.type == "cpu" and not known.table and not known.bans and measure is None:
        compiled = _BACKENDS[rule.CPU[0]]
        if not compiled.reason and compiled.refusal is None:
            return compiled.operators  # what most calls take, without a `Call`
    call = operator.call(*arguments)
    if measure is not None:
        measure(arguments, call)
        known = tables.of(device)
    c_in, c_out, _ = size = measured.size_of(call)
    ranking: measured.Ranking = ()
    if known.table:
        ranking = measured.lookup(known.table, measured.key_of(call), size, measured.pixels_of(call))
    causes: list[str] = []
    for name in (*ranking, *rule.order(device.type, c_in, c_out)):
        cause = (_refusal(name, call) or banned(name, call)) if name in _BACKENDS else "it is not known"
        if not cause:
            if causes and name == "reference" and name not in ranking:
                _warn_slow(device.type, "; ".join(dict.fromkeys(causes)))
            return _BACKENDS[name].operators
        causes.append(f"{name}: {cause}")
    raise AssertionError("the reference is always available")


def _warn_slow(device_type: str, causes: str) -> None:
    if torch.compiler.is_compiling() or (device_type, causes) in _warned:
        return
    _warned.add((device_type, causes))
    warnings.warn(
        f"pconv_ext falls back to its slow reference for {device_type} tensors ({causes})", stacklevel=5
    )
