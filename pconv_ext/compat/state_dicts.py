"""Checkpoints of other implementations, by the keys of their layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: The convolution of the features and that of the mask, in layers that have two.
CONV_PAIRS = (("input_conv", "mask_conv"), ("conv", "mask_conv"), ("conv2d", "mask2d"))
_DROPPED = ("weight_mask_updater", "weight_maskUpdater", "_bias_view", "mask_conv_weight")


def convert_state_dict(
    state_dict: Mapping[str, Tensor], *, scaled_by_window: bool | None = None
) -> dict[str, Tensor]:
    """Rename and rescale the partial convolution layers in `state_dict` to what `PartialConv2d` loads.

    Recognises the layers of the table at the top of `pconv_ext.compat` by their keys, at any depth and mixed,
    and leaves everything else alone, so that it may also be applied to a dict which needs no conversion::

        model.load_state_dict(pconv_ext.compat.convert_state_dict(checkpoint["model"]))

    Layers with a convolution of the mask beside that of the features (``input_conv`` or ``conv`` and
    ``mask_conv``, ``conv2d`` and ``mask2d``) are saved alike whether they multiply by sum(1) or not. Tell by
    the code::

        output * self.slide_winsize / mask_sum  # scaled_by_window=True, 3d-photo-inpainting
        output / mask_sum                       # False, naoto0804, climatereconstructionAI, bobqywei

    Args:
        state_dict: parameters and buffers by name. Not modified; tensors that need no change are shared.
        scaled_by_window: True = these layers multiply by sum(1), their weights are kept; False = they do not,
            their weights [C_out, C_in, kh, kw] are divided by C_in * kh * kw (by kh * kw where the mask's
            kernel has one plane). Of no effect on other layers. None = not known, enough if there are none.

    Returns:
        The converted dict, in the order of `state_dict`.

    Raises:
        ValueError: a layer is there for which `scaled_by_window` decides, and it is None; or its weights
            would have to be divided in half precision.
    """
    pairs = {
        key.removesuffix(f"{mask}.weight"): (conv, mask)
        for key in state_dict
        for conv, mask in CONV_PAIRS
        if _is_key(key, f"{mask}.weight")
        and _is_pair(state_dict, key.removesuffix(f"{mask}.weight"), conv, mask)
    }
    if pairs and scaled_by_window is None:
        prefix, (conv, _) = next(iter(pairs.items()))
        raise ValueError(_choice(f"{prefix}{conv}.weight", len(pairs) - 1))
    renamed = {
        f"{prefix}conv.weight": f"{prefix}weight"
        for key in state_dict
        if _is_key(key, "mask_conv_weight")
        for prefix in [key.removesuffix("mask_conv_weight")]
    }
    dropped, windows = set(), {}
    for prefix, (conv, mask) in pairs.items():
        renamed |= {f"{prefix}{conv}.weight": f"{prefix}weight", f"{prefix}{conv}.bias": f"{prefix}bias"}
        dropped |= {f"{prefix}{mask}.weight", f"{prefix}{mask}.bias"}
        if not scaled_by_window:
            windows[f"{prefix}{conv}.weight"] = state_dict[f"{prefix}{mask}.weight"][0].numel()
    return {
        renamed.get(key, key): rescaled(value, windows[key], key) if key in windows else value
        for key, value in state_dict.items()
        if key not in dropped and not any(_is_key(key, name) for name in _DROPPED)
    }


def rescaled(weight: Tensor, divisor: float, name: str) -> Tensor:
    """`weight` over `divisor`.

    Raises:
        ValueError: it is in half precision, where the quotient is not the same to 1e-5.
    """
    if weight.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"{name}: weights in {weight.dtype} lose digits when they are divided by {divisor:g}; convert "
            "them to float32 first"
        )
    return weight / divisor


def _is_key(key: str, name: str) -> bool:
    return key == name or key.endswith("." + name)


def _is_pair(state_dict: Mapping[str, Tensor], prefix: str, conv: str, mask: str) -> bool:
    """Whether the two convolutions are a partial convolution: 2-D, and that of the mask a sum.

    Gated convolutions go by the same names, with mask weights that are learned.
    """
    weight, ones = state_dict.get(f"{prefix}{conv}.weight"), state_dict[f"{prefix}{mask}.weight"]
    bias = state_dict.get(f"{prefix}{mask}.bias")
    if weight is None or weight.dim() != 4 or ones.dim() != 4 or weight.shape[2:] != ones.shape[2:]:
        return False
    if ones.is_meta:
        return True
    return bool(torch.all(ones == 1)) and (bias is None or not torch.any(bias))


def _choice(key: str, others: int) -> str:
    more = f" (and of {others} more)" if others else ""
    return (
        f"convert_state_dict: keys do not tell whether the layer of '{key}'{more} multiplies by sum(1). Look "
        "at how its class divides by the sum of the mask: if it also multiplies by slide_winsize, or C_in * "
        "kh * kw, pass scaled_by_window=True; if it only divides, as naoto0804's and "
        "climatereconstructionAI's do, pass scaled_by_window=False"
    )
