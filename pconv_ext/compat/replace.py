"""Replacing the layers of a model that is built."""

from __future__ import annotations

import warnings
from collections import Counter

from torch import nn

from .. import _backends
from ..modules import PartialConv2d
from . import forms, probe

_CLASS_NAMES = frozenset(
    {"PartialConv2d", "PartialConv", "PConv2d", "PConv", "PConvBlock", "PartialConvLayer"}
)


def replace_partial_convs(model: nn.Module, *, backend: str = "auto") -> nn.Module:
    """Replace the partial convolution layers of an existing model by `PartialConv2d`, in place.

    A layer is looked at if its class or a base of it is called PartialConv2d, PartialConv, PConv2d, PConv,
    PConvBlock or PartialConvLayer. It is replaced only if

    - all its parameters, buffers, submodules, attributes and overridden methods are those of a layer in the
      table at the top of `pconv_ext.compat`, in two dimensions; padding is of zeros, in the convolution or
      before it;
    - nothing hangs on it that would be lost or go on without it: hooks of any kind, torch.compile, a second
      reference in an attribute, a list or a dict of a module, a weight that would have to be rescaled and is
      shared with another layer, in half precision or under DistributedDataParallel;
    - copies of it, one of them converted, give the same outputs and masks, to 1e-5 of the largest output.
      They are compared in float64, in evaluation and in training mode, on small random inputs with and
      without holes, under masks of one plane and of all channels. Masks are zeros and ones.

    Every other layer is left as it is, with a warning that names what was not understood, the hooks or the
    difference. Parameters stay the same objects with their dtype, device and requires_grad, except weights of
    layers that leave out sum(1), which are rescaled and therefore new: make optimizers, averaged copies and
    wrappers of the model afterwards. Training modes are kept, and so is how a layer is called and returns:

    - NVIDIA: ``layer(input, mask_in=None)`` returns out or (out, mask), by the layer's return_mask;
    - mmagic: ``layer(input, mask=None, return_mask=True)``; without a mask it is a plain convolution;
    - all others: ``layer(input, mask)`` returns (out, mask), masks with one plane per channel; the layer's
      norm and activation are applied to out, and keep their names.

    For all of them masks are 1 = valid at the layer, also where the model's own input has 1 = hole.

    Args:
        model: any module. If it is itself such a layer, only the returned module is new.
        backend: that of the new layers.

    Returns:
        `model`, for convenience.

    Raises:
        ValueError: an unknown backend. Nothing is replaced.
    """
    _backends.check_name("replace_partial_convs", backend)
    uses, held = _uses(model), _held_elsewhere(model)
    replacements: dict[nn.Module, nn.Module] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, PartialConv2d) or _CLASS_NAMES.isdisjoint(
            base.__name__ for base in type(layer).__mro__
        ):
            continue
        new = held.get(id(layer)) or _replacement(layer, backend, uses)
        if isinstance(new, str):
            name = type(layer).__name__
            warnings.warn(f"{path or 'model'}: {name} left as it is, {new}", stacklevel=2)
        else:
            replacements[layer] = new
    for parent in list(model.modules()):
        # named_children() leaves out the second name of a shared layer
        for name, child in parent._modules.items():
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)


def _replacement(layer: nn.Module, backend: str, uses: Counter[int]) -> nn.Module | str:
    """The layer to take the place of `layer`, or why there is none."""
    form = forms.recognise(layer)
    if form is None:
        names = (*layer._parameters, *layer._buffers, *layer._modules)
        return f"not recognised: none of the known layers with {', '.join(names) or 'nothing'}"
    unknown = forms.not_understood(layer, form)
    if unknown:
        return f"not recognised: {', '.join(unknown)}"
    hooks = forms.hooks(layer, form)
    if hooks:
        return f"it carries hooks: {', '.join(hooks)}"
    weight = forms.rescaled_weight(layer, form)
    if weight is not None and (uses[id(weight)] > 1 or uses[id(layer._modules[form.convs[0]])] > 1):
        return f"its {form.convs[0]}.weight is shared and would be another"
    reason = probe.difference(layer, form)
    if reason:
        return reason
    try:
        new = form.convert(layer, backend)
    except ValueError as error:
        return str(error)
    new.training = layer.training  # not train(), a norm may be frozen
    return new


def _held_elsewhere(model: nn.Module) -> dict[int, str]:
    """Why a module cannot be taken out of `model` by its name alone, by id."""
    held = {}
    for path, module in model.named_modules():
        if module._compiled_call_impl is not None:
            held[id(module)] = "it is compiled"
        if type(module).__name__ == "OptimizedModule":
            held |= {id(child): "it is compiled" for child in module.children()}
        for name, value in vars(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            values = value.values() if isinstance(value, dict) else value
            for other in values if isinstance(value, (dict, list, tuple)) else (value,):
                if isinstance(other, nn.Module):
                    held.setdefault(id(other), f"{path or 'model'}.{name} holds it, too")
    return held


def _uses(model: nn.Module) -> Counter[int]:
    """How many modules of `model` hold each module and each parameter, by id."""
    uses = Counter(
        id(held)
        for module in model.modules()
        for held in (*module._modules.values(), *module._parameters.values())
        if held is not None
    )
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):  # it goes on reducing those it has found
            uses.update(id(parameter) for parameter in module.parameters())
    return uses
