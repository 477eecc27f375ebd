"""The CPU backend: the extension module ``pconv_ext._C`` adds its kernels to the namespace ``pconv_ext``."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor

from .. import ops
from ..ops.call import Call
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


def pack(call: Call) -> Tensor:
    """Packed weights of `call`, for others with the same parameters, whatever their features; [0] if none."""
    features, _, up = zip(*call.sources, strict=True)
    packed: Tensor = torch.ops.pconv_ext.pack(features, up, call.weights, call.scales, *call.geometry)
    return packed


def forward_packed(call: Call, packed: Tensor) -> tuple[Tensor, Tensor]:
    """Result of any operator, with packed weights where they fit. It has no autograd, autocast or fake."""
    features, masks, up = zip(*call.sources, strict=True)
    result: tuple[Tensor, Tensor] = torch.ops.pconv_ext.forward_packed(
        features, masks, up, call.weights, call.biases, call.scales, *call.geometry, packed
    )
    return result


_library = ops.register("pconv_ext")  # before the extension module, which adds kernels to these schemas
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
_library.define(
    f"pack(Tensor[] features, bool[] up, Tensor[] weights, Tensor? scales, {_GEOMETRY}) -> Tensor"
)
_library.define(
    "forward_packed(Tensor[] features, Tensor?[] masks, bool[] up, Tensor[] weights, Tensor[] biases, "
    f"Tensor? scales, {_GEOMETRY}, Tensor packed) -> (Tensor, Tensor)"
)
_CALL = f"Tensor x, Tensor? mask, Tensor[] weights, Tensor[] biases, Tensor? scales, {_GEOMETRY}"
_library.define("merge(Tensor[] weights, Tensor scales) -> Tensor")
_library.define(f"dense_factors(Tensor x, Tensor? mask, Tensor[] weights, {_GEOMETRY}) -> Tensor")
_library.define(f"complete_forward(Tensor(a!) out, {_CALL}) -> Tensor")
_library.define(
    f"complete_backward(Tensor(a!) dense_input, Tensor dense_weight, Tensor grad_out, {_CALL}, bool[] needs) "
    "-> (Tensor[], Tensor[], Tensor)"
)
BACKEND = Backend("cpu", torch.ops.pconv_ext, _load())
