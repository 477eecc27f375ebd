"""What is checked and timed: calls of an operator by their shapes, with fresh random numbers each time."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .. import ops
from .._prepack import Prepackable
from ..ops.call import Call

Arguments = tuple[Any, ...]


class Problem(NamedTuple):
    """A call of an operator. Of features and parameters in its arguments the shapes alone count."""

    operator: str
    arguments: Arguments  # all of its public function, in their order

    @property
    def call(self) -> Call:
        return call_of(self.operator, self.arguments)

    def __str__(self) -> str:
        call = self.call
        channels = "+".join(str(source.x.shape[1]) for source in call.sources)
        n, _, height, width = call.like.shape
        kernels = ",".join("x".join(map(str, dict.fromkeys(weight.shape[2:]))) for weight in call.weights)
        stride = "x".join(map(str, dict.fromkeys(call.geometry.stride)))
        c_out = call.weights[0].shape[0]
        return f"{self.operator}:{n}x{channels}x{height}x{width}:{c_out}:{kernels}:{stride}"

    def fresh(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Arguments:
        """Arguments of normal numbers, the masks as they are, NaN in holes; the global generators rest."""
        generator = torch.Generator().manual_seed(seed)
        places = _module(self.operator).OPERATOR.differentiable

        def random(like: Tensor, parameter: bool) -> Tensor:
            drawn = torch.randn(like.shape, generator=generator)
            if parameter and like.dim() == 4:
                drawn /= like[0].numel() ** 0.5  # outputs of the order of one
            return drawn.to(device, dtype)

        def made(place: int, argument: Any) -> Any:
            if place not in places:
                return argument.to(device) if isinstance(argument, Tensor) else argument
            parameter = place not in self._features
            return tree_map_only(Tensor, lambda like: random(like, parameter), argument)

        arguments = tuple(made(place, argument) for place, argument in enumerate(self.arguments))
        for x, mask, _ in call_of(self.operator, arguments).sources:
            if mask is not None:
                x.masked_fill_(mask == 0, float("nan"))
        return arguments

    @property
    def _features(self) -> set[int]:
        maps = {id(source.x) for source in self.call.sources}
        return {place for place, argument in enumerate(self.arguments) if id(argument) in maps}


def _module(operator: str) -> types.ModuleType:
    module: types.ModuleType = getattr(ops, operator)
    return module


def call_of(operator: str, arguments: Arguments) -> Call:
    """The `Call` that arguments of a public function are; raises as that function does."""
    module = _module(operator)
    call: Call = module.OPERATOR.call(*module.check(*arguments))
    return call


def of_network(network: nn.Module, *inputs: Tensor) -> list[Problem]:
    """What each of our layers in `network` computes of these inputs, in their order, each problem once."""
    found: list[Problem] = []

    def note(layer: nn.Module, given: Arguments) -> None:
        operator = cast("Prepackable", layer)._operator.OPERATOR
        arguments = tuple(
            tree_map_only(Tensor, _shape_of, argument) if place in operator.differentiable else argument
            for place, argument in enumerate(cast("Any", layer)._arguments(*given))
        )
        found.append(Problem(operator.name, arguments))

    layers = [layer for layer in network.modules() if isinstance(layer, Prepackable)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list({str(problem): problem for problem in found}.values())


def _shape_of(tensor: Tensor) -> Tensor:
    """A tensor of one number that looks as large."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _looks(*shape: int) -> Tensor:
    return torch.zeros(()).expand(shape)


def hole(n: int, height: int, width: int) -> Tensor:
    """A mask [n, 1, height, width] of ones with a rectangle of zeros, a fifth of each side."""
    mask = torch.ones(n, 1, height, width)
    mask[:, :, height // 3 : height // 3 + -(-height // 5), width // 4 : width // 4 + -(-width // 5)] = 0
    return mask


class _Shape(NamedTuple):
    """The parts of "OPERATOR:NxCxHxW:C_OUT:KERNELS:STRIDE"."""

    n: int
    channels: Sequence[int]  # of each source
    height: int
    width: int
    c_out: int
    kernels: Sequence[int]
    stride: int


def _partial_conv2d(s: _Shape) -> Arguments:
    (c_in,), (k,) = s.channels, s.kernels
    x, mask = _looks(s.n, c_in, s.height, s.width), hole(s.n, s.height, s.width)
    return x, mask, _looks(s.c_out, c_in, k, k), _looks(s.c_out), s.stride, k // 2, 1, 1


def _msfef(s: _Shape) -> Arguments:
    (c_in,) = s.channels
    x, mask = _looks(s.n, c_in, s.height, s.width), hole(s.n, s.height, s.width)
    weights = [_looks(s.c_out, c_in, k, k) for k in s.kernels]
    return x, mask, weights, [_looks(s.c_out) for _ in weights], _looks(len(weights), s.c_out), s.stride


def _upcat_partial_conv2d(s: _Shape) -> Arguments:
    (c_low, c_skip), (k,) = s.channels, s.kernels
    if s.stride != 1:
        raise ValueError("it has stride 1")
    height, width = -(-s.height // 2), -(-s.width // 2)
    low, skip = _looks(s.n, c_low, height, width), _looks(s.n, c_skip, s.height, s.width)
    weight = _looks(s.c_out, c_low + c_skip, k, k)
    return low, hole(s.n, height, width), skip, hole(s.n, s.height, s.width), weight, _looks(s.c_out)


#: By operator. What a shape says, for `of_shape` and for the examples of `pconv-ext doctor`.
SHAPES: dict[str, Callable[[_Shape], Arguments]] = {
    "partial_conv2d": _partial_conv2d,
    "msfef": _msfef,
    "upcat_partial_conv2d": _upcat_partial_conv2d,
}
FORM = "OPERATOR:NxCxHxW:C_OUT:KERNELS[:STRIDE], such as msfef:4x3x256x256:64:3,5,7:2"


def of_shape(text: str, user: str = "of_shape: text") -> Problem:
    """The problem that a text such as "partial_conv2d:4x64x128x128:128:3:2" tells, with a hole in its masks.

    A decoder stage has C = C_LOW+C_SKIP, and the height and width of its skip. The padding is half a kernel.

    Raises:
        ValueError: a text of another form, or sizes that the operator does not take; begins with `user`.
    """
    operator, *parts = text.split(":")
    if operator not in SHAPES or len(parts) not in (3, 4):
        known = ", ".join(SHAPES)
        raise ValueError(f"{user} must be {FORM} with OPERATOR one of {known}, got {text!r}")
    sizes, c_out, kernels, *stride = parts
    try:
        n, channels, height, width = sizes.split("x")
        shape = _Shape(
            int(n),
            [int(one) for one in channels.split("+")],
            int(height),
            int(width),
            int(c_out),
            [int(one) for one in kernels.split(",")],
            int(stride[0]) if stride else 1,
        )
        if min(shape.n, *shape.channels, shape.height, shape.width, shape.c_out, *shape.kernels) < 1:
            raise ValueError("sizes must be at least 1")
        problem = Problem(operator, SHAPES[operator](shape))
        problem.call  # noqa: B018  (its check)
    except ValueError as error:
        raise ValueError(f"{user} must be {FORM}, got {text!r}: {error}") from None
    return problem
