"""Which implementations exist here, why the others do not, and which one a call takes."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _cuda, _dispatch, _gpu, _triton, ops


class Backend(NamedTuple):
    """One implementation of the three operators."""

    device_type: str | None  # of the tensors it takes; None = any
    operators: Any  # the torch.ops namespace, None for the reference
    reason: str  # why it is not available, "" if it is (or only a device can tell)
    #: of an operator's name and checked arguments: why it cannot compute them, "" if it can
    refusal: Callable[[str, tuple[Any, ...]], str] = lambda op, args: ""


#: "auto" takes the first of these that is available, by device of the tensors, unless another was measured
#: faster (_dispatch.py).
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}

_library = ops.register("pconv_ext")  # before the extension modules, which add kernels to these schemas


def _load(module: str, device_key: str) -> str:
    """Import an extension module of the package. "" if it brought all kernels, else why not, in one line."""
    folder = Path(__file__).parent
    if not any(folder.glob(f"{module}.*")):
        return (
            f"pconv_ext.{module} is not built in {folder}: run `pip install .` in the checkout, "
            "and leave the checkout to use an installed copy"
        )
    try:
        importlib.import_module(f"pconv_ext.{module}")
    except ImportError as error:
        return f"pconv_ext.{module} cannot be loaded: {' '.join(str(error).split())}"
    missing = ops.missing("pconv_ext", device_key)
    return f"pconv_ext.{module} has no {device_key} kernel for {', '.join(missing)}" if missing else ""


_BACKENDS = {
    "cpu": Backend("cpu", torch.ops.pconv_ext, _load("_C", "CPU")),
    "cuda": Backend("cuda", _cuda.OPERATORS, _cuda.REASON, _cuda.refusal),
    "triton": Backend(_triton.DEVICE_TYPE, _triton.OPERATORS, _triton.REASON, _gpu.refusal),
    "reference": Backend(None, None, ""),
}

_warned: set[tuple[str, str]] = set()


def backends() -> dict[str, tuple[bool, str]]:
    """Which backends can be used here, and why the others cannot, in one line.

    Returns:
        ``{"cpu": (True, ""), "cuda": (False, "why not"), "triton": ..., "reference": (True, "")}``.
    """
    reasons = {name: backend.reason for name, backend in _BACKENDS.items()}
    reasons |= {"cuda": _cuda.reason(), "triton": _triton.reason()}
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


def choose(op: str, backend: str, args: tuple[Any, ...]) -> Any:
    """The ``torch.ops`` namespace to call with `args`, the operator's checked arguments; None: the reference.

    Raises ValueError for an unknown backend or one that cannot compute these arguments, RuntimeError with
    the reason for one that is not available here.
    """
    x: Tensor = args[0]
    device_type = x.device.type
    if backend == "auto":
        return _automatic(op, device_type, args)
    check_name(op, backend)
    chosen = _BACKENDS[backend]
    fits = chosen.device_type in (None, device_type)
    reason = chosen.reason if fits else backends()[backend][1]  # on a fitting device there is a GPU
    if reason:
        raise RuntimeError(f"{op}: backend {backend!r} is not available: {reason}")
    if not fits:
        raise ValueError(
            f"{op}: backend {backend!r} takes tensors on {chosen.device_type}, got x on {x.device}"
        )
    refusal = chosen.refusal(op, args)
    if refusal:
        raise ValueError(f"{op}: backend {backend!r} cannot take this call: {refusal}")
    return chosen.operators


def _automatic(op: str, device_type: str, args: tuple[Any, ...]) -> Any:
    causes: list[str] = []
    order = _ORDER.get(device_type, ("reference",))
    if device_type == "cuda" and args[0].dtype in _dispatch.DTYPES:
        first = _dispatch.faster(op, args)
        order = (first, *(name for name in order if name != first)) if first else order
    for name in order:
        backend = _BACKENDS[name]
        if backend.device_type not in (None, device_type):  # Triton's interpreter takes tensors of the CPU
            continue
        cause = backend.reason or backend.refusal(op, args)
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
