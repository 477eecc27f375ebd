"""The public layers: how one is recognised, what of it is understood, and its conversion."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import nn

from ..modules import PartialConv2d
from .layers import MMagicPartialConv2d, NormActPartialConv2d
from .state_dicts import CONV_PAIRS, rescaled

Layer = TypeVar("Layer", bound=PartialConv2d)

#: What holds the kernel of ones that sums a mask. `PartialConv2d` counts without one.
MASK_KERNELS = frozenset({"weight_mask_updater", "weight_maskUpdater", "mask_conv_weight"}).union(
    mask for _, mask in CONV_PAIRS
)
#: Those of nn.Conv2d. Layers that hold a convolution often repeat them.
_GEOMETRY = frozenset(
    {"in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed"}
    | {"output_padding", "groups", "padding_mode"}
)
#: Methods of nn.Conv2d that a layer may have its own of: what it computes is compared, and how it was
#: initialised and is printed does not matter.
_COMPARED = frozenset({"forward", "_conv_forward", "extra_repr", "reset_parameters"})


@dataclass(frozen=True, eq=False)
class Form:
    """A public layer.

    convert: makes the replacement out of the layer and the name of a backend.
    convs: its submodules that are convolutions; they do not survive.
    after: its submodules that do, in the order in which they are applied; each may be absent.
    tensors: its own parameters and buffers.
    attributes: its own other attributes, beyond those of nn.Conv2d.
    calls: keyword arguments, beyond features and mask, that it is called with.
    """

    convert: Callable[[Any, str], PartialConv2d]
    convs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    tensors: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    calls: tuple[dict[str, Any], ...] = ({},)


def recognise(layer: nn.Module) -> Form | None:
    """The form that `layer` looks like, by its most telling names; `not_understood` looks at all of it."""
    if isinstance(layer, nn.Conv2d):
        if not hasattr(layer, "multi_channel"):
            return None
        if hasattr(layer, "return_mask"):
            return _NVIDIA
        return _MMAGIC if "return_mask" in inspect.signature(layer.forward).parameters else None
    if layer._modules.get("conv") is not None and "mask_conv_weight" in layer._buffers:
        return _XYF
    return next((form for form in _PAIRS if all(layer._modules.get(name) for name in form.convs)), None)


def not_understood(layer: nn.Module, form: Form) -> list[str]:
    """What `layer` has beyond `form`: submodules, tensors, attributes and methods, by name."""
    modules = {*form.convs, *form.after}
    names = [name for name in layer._modules if name not in modules]
    names += [name for name in (*layer._parameters, *layer._buffers) if name not in form.tensors]
    names += _plain_attributes(layer, form)
    names += _class_attributes(type(layer), form)
    dropout = layer._modules.get("dropout")
    if dropout is not None and type(dropout) is not nn.Identity:
        names.append(f"dropout ({type(dropout).__name__})")
    for name in form.convs:
        names += _beyond_conv2d(name, layer._modules[name])
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        names.append(f"padding_mode={layer.padding_mode!r}")
    if not names and form in _PAIRS:
        window = getattr(layer, "slide_winsize", 1)
        if not isinstance(window, (int, float)) or window <= 0:
            names.append(f"slide_winsize={window!r}")
        if _padding(layer, form) is None:
            names.append(f"padding={layer.padding!r}")
    return names


def hooks(layer: nn.Module, form: Form) -> list[str]:
    """The kinds of hooks that would be lost: on `layer`, its convolutions and a weight that is rescaled."""
    convs = [(f"{name}.", layer._modules[name]) for name in form.convs]
    found = [
        f"{path}{name}"
        for path, module in [("", layer), *convs]
        for name, value in vars(module).items()
        if name.endswith("_hooks") and value
    ]
    weight = rescaled_weight(layer, form)
    if weight is not None and (weight._backward_hooks or weight._post_accumulate_grad_hooks):
        found.append(f"{form.convs[0]}.weight")
    return found


def rescaled_weight(layer: Any, form: Form) -> Any:
    """The weight that the replacement holds rescaled, so that it is another parameter; None if it stays."""
    if form not in _PAIRS or _divisor(layer, form) == 1:
        return None
    return layer._modules[form.convs[0]].weight


def _beyond_conv2d(name: str, conv: Any) -> list[str]:
    """What a convolution called `name` has beyond nn.Conv2d, such as another dimension or a normed weight."""
    if type(conv) is not nn.Conv2d:
        return [f"{name} ({type(conv).__name__})"]
    tensors = [key for key in (*conv._parameters, *conv._buffers) if key not in ("weight", "bias")]
    beyond = [f"{name}.{key}" for key in (*tensors, *conv._modules, *_public(conv)) if key not in _GEOMETRY]
    if conv.padding_mode != "zeros":
        beyond.append(f"{name}.padding_mode={conv.padding_mode!r}")
    return beyond


def _public(module: nn.Module) -> list[str]:
    """The attributes of one module, beyond those of every nn.Module."""
    return [name for name in vars(module) if not name.startswith("_") and name != "training"]


def _plain_attributes(layer: nn.Module, form: Form) -> Iterator[str]:
    for name in _public(layer):
        value = vars(layer)[name]
        # A module that is not there is None; bobqywei's bn tells whether batch_normalization is there.
        absent = name in form.after and (value is None or isinstance(value, bool))
        pads = name == "trans_pad" and value is F.pad
        if name not in form.attributes | _GEOMETRY and not absent and not pads:
            yield f"{name} ({value.__name__})" if inspect.isroutine(value) else name


def _class_attributes(cls: type, form: Form) -> Iterator[str]:
    """Data of the class, and methods by which it changes more than what it computes, such as loading."""
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in ("torch", "builtins", "typing", "abc"):
            continue
        for name, value in vars(base).items():
            if callable(value) or isinstance(value, (staticmethod, classmethod, property)):
                changes = hasattr(nn.Conv2d, name) and name not in _COMPARED
            else:
                changes = not name.startswith("_") and name not in form.attributes | _GEOMETRY
            if changes and not name.startswith("__"):
                yield f"{base.__name__}.{name}"


def _like_conv(
    conv: nn.Conv2d, weight: nn.Parameter, bias: nn.Parameter | None, cls: type[Layer], **options: Any
) -> Layer:
    layer = cls(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        options.pop("padding", conv.padding),
        conv.dilation,
        conv.groups,
        bias is not None,
        conv.padding_mode,
        device="meta",  # its parameters are replaced right away
        **options,
    )
    layer.weight, layer.bias = weight, bias
    return layer


def _from_nvidia(old: Any, backend: str) -> PartialConv2d:
    options = {"multi_channel": old.multi_channel, "return_mask": old.return_mask, "backend": backend}
    return _like_conv(old, old.weight, old.bias, PartialConv2d, **options)


def _from_mmagic(old: Any, backend: str) -> PartialConv2d:
    options = {"multi_channel": old.multi_channel, "return_mask": True, "backend": backend}
    return _like_conv(old, old.weight, old.bias, MMagicPartialConv2d, **options)


def _from_xyf(old: Any, backend: str) -> PartialConv2d:
    options = {"multi_channel": True, "return_mask": True, "backend": backend, **_after(old, _XYF)}
    return _like_conv(old.conv, old.conv.weight, old.bias, NormActPartialConv2d, **options)


def _pair(conv_name: str, mask_name: str) -> Form:
    """Layers with a convolution of the mask: naoto0804's and those that descend from it."""

    def convert(old: Any, backend: str) -> PartialConv2d:
        conv, mask = old._modules[conv_name], old._modules[mask_name]
        weight, divisor = conv.weight, _divisor(old, form)
        if divisor != 1:
            scaled = rescaled(weight.detach(), divisor, f"{conv_name}.weight")
            weight = nn.Parameter(scaled, requires_grad=weight.requires_grad)
        return _like_conv(
            conv,
            weight,
            conv.bias,
            NormActPartialConv2d,
            padding=_padding(old, form),
            multi_channel=mask.out_channels == conv.out_channels,
            return_mask=True,
            backend=backend,
            **_after(old, form),
        )

    form = Form(
        convert,
        convs=(conv_name, mask_name),
        after=("bn", "batch_normalization", "activation", "dropout"),
        attributes=frozenset({"slide_winsize", "masked_bn"}),
    )
    return form


def _divisor(layer: Any, form: Form) -> float:
    """By what its weight is divided here, where sum(1) is a factor: sum(1) over the layer's own factor."""
    ones = layer._modules[form.convs[1]].weight
    return ones[0].numel() / float(getattr(layer, "slide_winsize", 1))


def _padding(layer: Any, form: Form) -> Any:
    """That of the convolution, or what the layer pads with before it; None if `PartialConv2d` has no such."""
    conv, outside = layer._modules[form.convs[0]], vars(layer).get("padding", 0)
    if isinstance(conv.padding, str) or any(conv.padding):
        return conv.padding
    if isinstance(outside, int):
        return outside
    if not isinstance(outside, (tuple, list)) or len(outside) not in (2, 4):
        return None
    if len(outside) == 2:
        return tuple(outside)
    left, right, top, bottom = outside  # the order of F.pad
    return (top, left) if (top, left) == (bottom, right) else None


def _after(layer: nn.Module, form: Form) -> dict[str, Any]:
    """The arguments of `NormActPartialConv2d` for the modules that follow the convolution."""
    after = {name: layer._modules[name] for name in form.after if layer._modules.get(name) is not None}
    masked = tuple(name for name, module in after.items() if _takes_mask(module))
    return {"after": after, "masked": masked}


def _takes_mask(module: Any) -> bool:
    parameters = inspect.signature(module.forward).parameters
    return list(parameters)[1:2] == ["mask"]


_CACHED = {"last_size", "update_mask", "mask_ratio", "slide_winsize"}
_NVIDIA = Form(
    _from_nvidia,
    tensors=frozenset({"weight", "bias", "weight_mask_updater", "weight_maskUpdater"}),
    attributes=frozenset(
        {"multi_channel", "return_mask", "weight_mask_updater", "weight_maskUpdater", *_CACHED}
    ),
)
_MMAGIC = Form(
    _from_mmagic,
    tensors=frozenset({"weight", "bias", "weight_mask_updater"}),
    attributes=frozenset({"multi_channel", "eps", "mask_kernel_numel"}),
    calls=({}, {"return_mask": False}),
)
_XYF = Form(
    _from_xyf, convs=("conv",), after=("norm", "activation"), tensors=frozenset({"bias", "mask_conv_weight"})
)
_PAIRS = tuple(_pair(conv, mask) for conv, mask in CONV_PAIRS)
