"""Packed weights that are kept between calls: `prepack`, and the layers that take part."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ._backends import banned, cpu, eager
from .ops.call import Call

Module = TypeVar("Module", bound=nn.Module)
_BACKENDS = ("auto", "cpu")  # those that have packed weights of the CPU


def prepack(module: Module, enabled: bool = True) -> Module:
    """Keep the weights of partial convolutions as the CPU kernels take them, for inference.

    In float32 the kernels fold, transform and pack the weights in every call, which is much of a call on
    small maps and batches. This does it once, for every `PartialConv2d`, `MSFEF` and decoder stage of
    `InpaintingNet` in `module` that the kernels compute with Winograd's products; other layers stay as they
    are::

        net = pconv_ext.prepack(net.eval())
        pconv_ext.prepack(net, False)  # undone

    Results differ by rounding alone. The packed weights take memory beside the weights: for each pair of an
    input and an output channel 252 values beside the 83 of an MSFEF with kernels 3, 5, 7 and stride 2, 45
    beside the 9 of a 3x3 kernel. (With stride 2 that would be 90, and slower to read than to make: such a
    layer keeps none.) They belong to the module only while it lives: no state_dict, copy or pickle has them.

    They are used where no gradient is recorded, but for results of at most 16 pixels or 2 rows or columns;
    not under autocast, torch.func, tracing or in what torch.compile makes, nor while the algorithm is
    "direct" (`set_algorithm`). There the weights are packed in every call, as ever.

    A layer drops them, until `prepack` is called again, when it is trained (``train()``), moved or converted
    (``to()``, ``half()``, ...) or given a state_dict, and in the next call after a parameter was edited in
    place (also by an optimiser), replaced, pruned, parametrised or given other storage. **What cannot be
    noticed** are edits that bump no version counter: through ``weight.data`` or ``weight.detach().numpy()``,
    by other processes in shared memory. After those call it again.

    Args:
        module: in evaluation mode; changed in place.
        enabled: False drops what is kept.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is no ``torch.nn.Module``.
        ValueError: a layer is in training mode.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"prepack: module must be a torch.nn.Module, got {type(module).__name__}")
    layers = list(_layers(module))
    training = [name or type(layer).__name__ for name, layer in layers if layer.training]
    if enabled and training:
        raise ValueError(
            f"prepack: module must be in evaluation mode, call eval(): {training[0]} is in training mode"
        )
    for _, layer in layers:
        layer._drop_packed()
        if enabled:
            layer._pack()
    return module


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, Prepackable]]:
    """The outermost layers that can keep packed weights, with their names."""
    if isinstance(module, Prepackable):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _layers(child, f"{name}.{child_name}" if name else child_name)


def _packable(call: Call) -> list[Tensor]:
    """What packed weights are made of."""
    return [*call.weights] if call.scales is None else [*call.weights, call.scales]


def _plain(call: Call) -> bool:
    """Whether nobody but the kernels has to see this call: no autograd, autocast, transform or tracer."""
    features = [source.x for source in call.sources]
    return (
        not (
            torch.is_grad_enabled()
            and any(one.requires_grad for one in (*features, *_packable(call), *call.biases))
        )
        and not torch.is_autocast_enabled("cpu")
        and eager.is_plain(features)
    )


class _Origin(NamedTuple):
    """What a parameter was when it was packed."""

    parameter: Tensor
    version: int
    address: int

    def is_still(self, parameter: Tensor) -> bool:
        return (
            parameter is self.parameter
            and parameter._version == self.version
            and parameter.data_ptr() == self.address
        )


class _Packed:
    """Packed weights of a layer, and what they were made of. A copy or pickle of them is None."""

    def __init__(self, weights: Tensor, parameters: Sequence[Tensor]) -> None:
        self.weights = weights
        self.origins = [_Origin(one, one._version, one.data_ptr()) for one in parameters]

    def are_of(self, parameters: Sequence[Tensor]) -> bool:
        for origin, parameter in zip(self.origins, parameters, strict=True):
            if not origin.is_still(parameter):
                return False
        return True

    def __reduce__(self) -> Any:
        return type(None), ()


class Prepackable(nn.Module):
    """A layer that computes one operator of its parameters, and may keep them packed."""

    backend: str
    _operator: types.ModuleType  # in pconv_ext.ops
    _packed: _Packed | None = None

    def _example(self) -> tuple[Any, ...]:
        """Arguments of the operator, of features that are uninitialised and large."""
        raise NotImplementedError

    def _from_packed(self, arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
        """Results of the operator, where there are packed weights that may be used; else None."""
        packed = self._packed
        if packed is None or torch.compiler.is_compiling() or self.backend not in _BACKENDS:
            return None
        call = self._operator.OPERATOR.call(*self._operator.check(*arguments))
        if not packed.are_of(_packable(call)):
            self._drop_packed()
            return None
        if not _plain(call) or (self.backend == "auto" and banned("cpu", call)):
            return None
        return cpu.forward_packed(call, packed.weights)

    def _pack(self) -> None:
        if cpu.BACKEND.reason or self.backend not in _BACKENDS:
            return
        arguments = self._example()
        if arguments[0].device.type != "cpu":
            return
        call = self._operator.OPERATOR.call(*self._operator.check(*arguments))
        parameters = _packable(call)
        if all(isinstance(one, nn.Parameter) and not one.is_inference() for one in parameters):
            with torch.no_grad():
                packed = cpu.pack(call)
            if packed.numel():
                self._packed = _Packed(packed, parameters)

    def _drop_packed(self) -> None:
        self.__dict__.pop("_packed", None)

    def train(self, mode: bool = True) -> Any:
        if mode:
            self._drop_packed()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._drop_packed()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop_packed()
        super()._load_from_state_dict(*args, **kwargs)
