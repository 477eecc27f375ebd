"""An operator's registration in the namespace of a backend: schema, fake, autograd, autocast, batching."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from .. import _autocast
from . import _autograd
from ._operator import Operator

_AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def define(library: torch.library.Library, operator: Operator) -> None:
    """Define `operator` and its backward in the namespace of `library`, without kernels."""
    name, backward_name = operator.names
    forward = _define(library, name, operator.schema, operator.fake)
    backward = _define(library, backward_name, operator.backward_schema, operator.fake_backward)
    library.impl(name, _autograd.kernel(operator, forward, backward), "Autograd")
    for device_type, key in _AUTOCAST_DEVICES.items():
        library.impl(name, functools.partial(_autocast_kernel, operator, forward, device_type), key)


def _define(library: torch.library.Library, name: str, schema: str, fake: Callable[..., Any]) -> Any:
    """Define ``library::name`` with its fake (also its Meta kernel) and batching rule, and return it."""
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)
    defined = getattr(getattr(torch.ops, library.ns), name).default
    torch.library.register_vmap(defined, functools.partial(_one_by_one, defined), lib=library)
    return defined


def _autocast_kernel(operator: Operator, forward: Any, device_type: str, *arguments: Any) -> Any:
    """Run outside of autocast, features and parameters cast as a convolution's, masks never."""
    cast = functools.partial(_autocast.cast, device_type=device_type)
    arguments = tuple(
        tree_map_only(Tensor, cast, argument) if i in operator.differentiable else argument
        for i, argument in enumerate(arguments)
    )
    with torch.autocast(device_type, enabled=False):
        return forward(*arguments)


def _one_by_one(defined: Any, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    """Batching rule for ``torch.vmap``: a call for each entry of the batch."""

    def entry(argument: Any, dim: Any, i: int) -> Any:
        if isinstance(argument, (list, tuple)) and dim is not None:
            return [entry(one, its, i) for one, its in zip(argument, dim, strict=True)]
        return argument if dim is None else argument.select(dim, i)

    if info.batch_size == 0:
        raise ValueError(f"{defined.name()} cannot be mapped over a dimension of size 0")
    calls = [
        defined(*(entry(argument, dim, i) for argument, dim in zip(arguments, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    results = tree_map(lambda *tensors: torch.stack(tensors), *calls)
    return results, tree_map(lambda _: 0, results)
