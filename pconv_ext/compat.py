"""Coming from another implementation: its checkpoints (`convert_state_dict`) and models
(`replace_partial_convs`).

What the public implementations call the tensors of one layer, and what becomes of them:

=================  ========================================================  ======================
implementation     keys of the layer                                         keys of `PartialConv2d`
=================  ========================================================  ======================
NVIDIA             ``weight``, ``bias``                                      the same
mmagic, mmediting  ``weight``, ``bias``, ``weight_mask_updater``             the same, less the last
naoto0804          ``input_conv.weight``, ``.bias``, ``mask_conv.weight``    ``weight``, ``bias``
naoto0804, later   ``conv2d.weight``, ``.bias``, ``mask2d.weight, .bias``    ``weight``, ``bias``
xyfJASON           ``conv.weight``, ``bias``, ``mask_conv_weight``           ``weight``, ``bias``
=================  ========================================================  ======================

naoto0804's layer divides by sum(M) and leaves out sum(1), so its weights are divided by C_in * kh * kw to
give the same outputs here; biases stay. All other keys (norms, other layers) are kept as they are.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from .modules import PartialConv2d

Layer = TypeVar("Layer", bound=PartialConv2d)

_CLASS_NAMES = ("PartialConv2d", "PartialConv", "PConv2d", "PConv")
#: naoto0804's layer: the convolution of the features, the convolution of the mask.
_NAOTO_KEYS = (("input_conv", "mask_conv"), ("conv2d", "mask2d"))
_DROPPED = ("weight_mask_updater", "_bias_view", "mask_conv_weight")


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and rescale the partial convolution layers in `state_dict` to what `PartialConv2d` loads.

    Recognises the layers of the table at the top of this module by their keys, at any depth and mixed, and
    leaves everything else alone, so that it may also be applied to a dict which needs no conversion::

        model.load_state_dict(pconv_ext.compat.convert_state_dict(checkpoint["model"]))

    Args:
        state_dict: parameters and buffers by name. Not modified; tensors that need no change are shared.

    Returns:
        The converted dict, in the order of `state_dict`.
    """
    naoto = {
        key.removesuffix(f"{mask}.weight"): (conv, mask)
        for key in state_dict
        for conv, mask in _NAOTO_KEYS
        if _is_key(key, f"{mask}.weight")
        and key.removesuffix(f"{mask}.weight") + f"{conv}.weight" in state_dict
    }
    xyf = {key.removesuffix("mask_conv_weight") for key in state_dict if _is_key(key, "mask_conv_weight")}
    renamed: dict[str, str] = {}
    dropped: set[str] = set()
    for prefix, (conv, mask) in naoto.items():
        renamed |= {f"{prefix}{conv}.weight": f"{prefix}weight", f"{prefix}{conv}.bias": f"{prefix}bias"}
        dropped |= {f"{prefix}{mask}.weight", f"{prefix}{mask}.bias"}
    for prefix in xyf:
        renamed[f"{prefix}conv.weight"] = f"{prefix}weight"

    converted = {}
    for key, value in state_dict.items():
        if key in dropped or any(_is_key(key, name) for name in _DROPPED):
            continue
        new_key = renamed.get(key, key)
        is_naoto_weight = new_key.removesuffix("weight") in naoto and key != new_key
        converted[new_key] = _unscaled(value) if is_naoto_weight else value
    return converted


def _is_key(key: str, name: str) -> bool:
    return key == name or key.endswith("." + name)


def _unscaled(weight: Tensor) -> Tensor:
    """naoto0804's weight [C_out, C_in, kh, kw] for the same output with sum(1) / sum(M), not 1 / sum(M)."""
    return weight / weight[0].numel()


def replace_partial_convs(model: nn.Module, *, backend: str = "auto") -> nn.Module:
    """Replace the partial convolution layers of an existing model by `PartialConv2d`, in place.

    A layer is recognised by class name (PartialConv2d, PartialConv, PConv2d or PConv) and by its keys, see
    the table at the top of this module. Parameters stay the same objects with their dtype, device and
    requires_grad, except that naoto0804's weights are rescaled and therefore new: make optimizers
    afterwards. Training mode is kept, and so is the way the layer is called and returns:

    - NVIDIA: ``layer(input, mask_in=None)`` returns out or (out, mask), by the layer's return_mask;
    - mmagic: ``layer(input, mask=None, return_mask=True)``; without a mask it is a plain convolution;
    - naoto0804: ``layer(input, mask)`` returns (out, mask), masks with one plane per channel;
    - xyfJASON: as naoto0804, with the layer's norm and activation applied to out.

    A layer of such a name that is none of these, or that carries hooks, is left as it is, with a warning.
    For all of them masks are 1 = valid at the layer, also where the model's own input has 1 = hole.

    Args:
        model: any module. If it is itself such a layer, only the returned module is new.
        backend: that of the new layers.

    Returns:
        `model`, for convenience.

    Raises:
        ValueError: a layer asks for what `PartialConv2d` refuses, such as another padding mode. Nothing is
            replaced.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for path, layer in model.named_modules():
        if type(layer).__name__ not in _CLASS_NAMES or isinstance(layer, PartialConv2d):
            continue
        convert = _converter(layer)
        if convert is None:
            warnings.warn(
                f"{path or 'model'}: {type(layer).__name__} left as it is, not recognised", stacklevel=2
            )
        elif layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            warnings.warn(f"{path}: {type(layer).__name__} left as it is, it carries hooks", stacklevel=2)
        else:
            replacements[layer] = convert(layer, backend).train(layer.training)
    for parent in list(model.modules()):
        for (
            name,
            child,
        ) in parent._modules.items():  # named_children() leaves out the second name of a shared layer
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)


def _converter(layer: nn.Module) -> Callable[[Any, str], PartialConv2d] | None:
    keys = set(layer.state_dict())
    if isinstance(layer, nn.Conv2d) and keys - {"weight_mask_updater"} in ({"weight"}, {"weight", "bias"}):
        if hasattr(layer, "multi_channel") and hasattr(layer, "return_mask"):
            return _from_nvidia
        if hasattr(layer, "multi_channel") and "return_mask" in inspect.signature(layer.forward).parameters:
            return _from_mmagic
    if (
        {"conv.weight", "bias", "mask_conv_weight"} <= keys
        and hasattr(layer, "norm")
        and hasattr(layer, "activation")
    ):
        return _from_xyf
    if any({f"{conv}.weight", f"{mask}.weight"} <= keys for conv, mask in _NAOTO_KEYS):
        return _from_naoto
    return None


def _like_conv(
    conv: nn.Conv2d, weight: nn.Parameter, bias: nn.Parameter | None, cls: type[Layer], **options: Any
) -> Layer:
    layer = cls(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
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


def _from_naoto(old: Any, backend: str) -> PartialConv2d:
    conv = old.input_conv if hasattr(old, "input_conv") else old.conv2d
    weight = nn.Parameter(_unscaled(conv.weight.detach()), requires_grad=conv.weight.requires_grad)
    options = {"multi_channel": True, "return_mask": True, "backend": backend}
    return _like_conv(conv, weight, conv.bias, PartialConv2d, **options)


def _from_xyf(old: Any, backend: str) -> PartialConv2d:
    options = {"multi_channel": True, "return_mask": True, "backend": backend}
    layer = _like_conv(old.conv, old.conv.weight, old.bias, NormActPartialConv2d, **options)
    layer.norm, layer.activation = old.norm, old.activation
    return layer


class MMagicPartialConv2d(PartialConv2d):
    """`PartialConv2d` that is called and returns as mmagic's layer."""

    def forward(self, input: Tensor, mask: Tensor | None = None, return_mask: bool = True) -> Any:
        """A plain convolution without `mask`; else out, or (out, new_mask) if `return_mask`."""
        if mask is None:
            return F.conv2d(
                input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        out, new_mask = self.partial_conv(input, mask)
        return (out, new_mask) if return_mask else out


class NormActPartialConv2d(PartialConv2d):
    """`PartialConv2d` followed by `norm` and `activation` (modules or None), as xyfJASON's layer."""

    norm: nn.Module | None
    activation: nn.Module | None

    def forward(self, input: Tensor, mask_in: Tensor | None = None) -> Any:
        """Return (activation(norm(out)), new_mask [N, C_out, H', W'])."""
        out, new_mask = self.partial_conv(input, mask_in)
        if self.norm is not None:
            out = self.norm(out)
        if self.activation is not None:
            out = self.activation(out)
        return out, new_mask
