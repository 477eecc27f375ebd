"""The public function of each operator: check the arguments, choose a backend, call its operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _backends, reference
from ._geometry import IntOrPair, Padding
from .ops import msfef as _msfef
from .ops import partial_conv2d as _partial_conv2d
from .ops import upcat_partial_conv2d as _upcat_partial_conv2d

__all__ = ["msfef", "partial_conv2d", "upcat_partial_conv2d"]


def partial_conv2d(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: Padding = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Partial convolution: the convolution of the valid inputs, scaled by how much of the window is valid.

    With M the mask under the window at p, outside the image counting as invalid::

        out(p)      = <W, x o M> * sum(1) / sum(M) + b   if sum(M) > 0, else 0
        new_mask(p) = 1                                  if sum(M) > 0, else 0

    "x o M" selects: NaN or Inf in a hole reaches neither output nor gradient. Equations (1) and (2) of
    Liu et al., "Image Inpainting for Irregular Holes Using Partial Convolutions", ECCV 2018.

    Args:
        x: features [N, C_in, H, W]; float64, float32, bfloat16 or float16.
        mask: [N or 1, 1, H, W], or [N or 1, C_in, H, W] with one plane per channel; bool, uint8 or floating.
            Nonzero (NaN included) is valid, zero is a hole. None = all valid: partial convolution as padding.
        weight: [C_out, C_in / groups, kh, kw], dtype of x.
        bias: [C_out] or None, dtype of x.
        stride, dilation: int or (vertical, horizontal).
        padding: int, (vertical, horizontal), "valid" or, at stride 1, "same".
        groups: as for a convolution; sum(M) runs over all C_in planes of a per-channel mask whatever the
            groups.
        backend: "auto", or a name in `pconv_ext.backends()`.

    Returns:
        out [N, C_out, H', W'] in dtype and layout (channels-last or not) of x, and new_mask [N, 1, H', W']
        in the dtype of mask (of x where it is None). Gradients reach x, weight and bias, exactly 0 in holes;
        never a mask.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong rank, shape, device, stride, padding, dilation, group count or backend name.
        RuntimeError: a backend asked for by name is not available here.
    """
    args = _partial_conv2d.check(x, mask, weight, bias, stride, padding, dilation, groups)
    operators = _backends.choose(_partial_conv2d.call(*args), backend)
    if operators is None:
        return reference.partial_conv2d(x, mask, weight, bias, stride, padding, dilation, groups)
    result: tuple[Tensor, Tensor] = operators.partial_conv2d(*args)
    return result


def msfef(
    x: Tensor,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    scales: Tensor,
    stride: IntOrPair = 1,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Multi-scale feature extraction: a scaled sum of partial convolutions of several kernel sizes, in one
    operator.

    With conv_i, r_i = sum(1) / sum(M) and the updated mask m_i of a partial convolution with kernel size
    k_i::

        out      = m_min * sum_i scales[i] * (r_i * conv_i(x o M) + biases[i])
        new_mask = m_min                      of the smallest kernel

    Args:
        x: features [N, C_in, H, W]; float64, float32, bfloat16 or float16.
        mask: [N or 1, 1, H, W]; bool, uint8 or floating; nonzero is valid; None = all valid.
        weights: n tensors [C_out, C_in, k_i, k_i], the k_i odd and distinct, in any order; padding is k_i //
            2.
        biases: n tensors [C_out], or None.
        scales: [n, C_out].
        stride: int or (vertical, horizontal), common to all.
        backend: "auto", or a name in `pconv_ext.backends()`.

    Returns:
        out [N, C_out, H', W'] in dtype and layout of x and new_mask [N, 1, H', W'] in the dtype of mask (of
        x where it is None). Gradients reach x, weights, biases and scales; never the mask.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong rank, shape, device, stride or backend name; even, repeated or no kernels.
        RuntimeError: a backend asked for by name is not available here.
    """
    args = _msfef.check(x, mask, weights, biases, scales, stride)
    operators = _backends.choose(_msfef.call(*args), backend)
    if operators is None:
        return reference.msfef(x, mask, weights, biases, scales, stride)
    result: tuple[Tensor, Tensor] = operators.msfef(*args)
    return result


def upcat_partial_conv2d(
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Decoder stage: up-sample, concatenate with the skip and convolve partially, in one operator.

    Equivalent to a stride-1 partial convolution with padding k // 2 of ``cat([up(x_low), skip], 1)`` under
    the per-channel mask ``cat([up(mask_low) x C1, mask_skip x C2], 1)``, where ``up(t)[i, j] = t[i >> 1, j
    >> 1]``; neither of these tensors is built. sum(M) = C1 * cnt_low + C2 * cnt_skip.

    Args:
        x_low: [N, C1, h, w]; float64, float32, bfloat16 or float16.
        mask_low: [N or 1, 1, h, w]; bool, uint8 or floating; nonzero is valid; None = all valid.
        skip: [N, C2, H, W] with H in {2h, 2h - 1} and W in {2w, 2w - 1}, dtype of x_low.
        mask_skip: [N or 1, 1, H, W] or None, as mask_low; its dtype may differ.
        weight: [C_out, C1 + C2, k, k] with k odd; the channels of x_low come first.
        bias: [C_out] or None.
        backend: "auto", or a name in `pconv_ext.backends()`.

    Returns:
        out [N, C_out, H, W] in dtype and layout of skip and new_mask [N, 1, H, W] in the dtype of mask_low,
        else of mask_skip, else of skip. Gradients reach x_low, skip, weight and bias; never a mask.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong rank, shape, device or backend name.
        RuntimeError: a backend asked for by name is not available here.
    """
    args = _upcat_partial_conv2d.check(x_low, mask_low, skip, mask_skip, weight, bias)
    operators = _backends.choose(_upcat_partial_conv2d.call(*args), backend)
    if operators is None:
        return reference.upcat_partial_conv2d(x_low, mask_low, skip, mask_skip, weight, bias)
    result: tuple[Tensor, Tensor] = operators.upcat_partial_conv2d(*args)
    return result
