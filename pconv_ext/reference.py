"""The operators in plain PyTorch: the documented truth which every backend is tested against.

Same arguments, results and errors as `pconv_ext.partial_conv2d`, `pconv_ext.msfef` and
`pconv_ext.upcat_partial_conv2d`, on any device, differentiable any number of times, exportable.

Arithmetic: valid entries are counted in int32; float64 input is computed in float64, everything else in
float32 and rounded to the input's dtype once, at the end. Holes are *selected* away (``torch.where``), never
multiplied by zero, so NaN or Inf in a hole reaches neither output nor gradient, and there is no epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _autocast
from ._geometry import Geometry, IntOrPair, Padding, centred, memory_format
from .ops import msfef as _msfef
from .ops import partial_conv2d as _partial_conv2d
from .ops import upcat_partial_conv2d as _upcat_partial_conv2d


def partial_conv2d(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: Padding = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Partial convolution, equations (1) and (2) of Liu et al. 2018; see `pconv_ext.partial_conv2d`."""
    *_, strides, paddings, dilations, groups = _partial_conv2d.check(
        x, mask, weight, bias, stride, padding, dilation, groups
    )
    geometry = Geometry(strides, paddings, dilations, groups)
    device_type = x.device.type
    if _autocast.active(device_type):
        x, weight = _autocast.cast(x, device_type), _autocast.cast(weight, device_type)
        bias = _autocast.cast_optional(bias, device_type)
        with torch.autocast(device_type, enabled=False):
            return partial_conv2d(x, mask, weight, bias, stride, padding, dilation, groups)

    valid = _valid(mask, x)
    count = _window_count(valid, weight, geometry)
    window = valid.shape[1] * weight.shape[2] * weight.shape[3]
    out = _convolve(_select(valid, x), weight, geometry) * _ratio(window, count, x)
    if bias is not None:
        out = out + _per_channel(bias, out)
    return _where_alive(out, count, x), _updated_mask(count, x, mask)


def msfef(
    x: Tensor,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    scales: Tensor,
    stride: IntOrPair = 1,
) -> tuple[Tensor, Tensor]:
    """Scaled sum of partial convolutions of several kernel sizes; see `pconv_ext.msfef`."""
    *_, strides = _msfef.check(x, mask, weights, biases, scales, stride)
    device_type = x.device.type
    if _autocast.active(device_type):
        x, scales = _autocast.cast(x, device_type), _autocast.cast(scales, device_type)
        weights = [_autocast.cast(w, device_type) for w in weights]
        biases = None if biases is None else [_autocast.cast(b, device_type) for b in biases]
        with torch.autocast(device_type, enabled=False):
            return msfef(x, mask, weights, biases, scales, stride)

    valid = _valid(mask, x)
    selected = _select(valid, x)
    out = x.new_zeros((), dtype=_accumulator(x))
    counts = {}
    for i, weight in enumerate(weights):
        kernel = weight.shape[2]
        geometry = centred(kernel, strides)
        counts[kernel] = _window_count(valid, weight, geometry)
        branch = _convolve(selected, weight, geometry) * _ratio(kernel * kernel, counts[kernel], x)
        if biases is not None:
            branch = branch + _per_channel(biases[i], branch)
        out = out + _per_channel(scales[i], branch) * branch
    smallest = counts[min(counts)]
    return _where_alive(out, smallest, x), _updated_mask(smallest, x, mask)


def upcat_partial_conv2d(
    x_low: Tensor,
    mask_low: Tensor | None,
    skip: Tensor,
    mask_skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Partial convolution of ``cat(up(x_low), skip)``; see `pconv_ext.upcat_partial_conv2d`."""
    _upcat_partial_conv2d.check(x_low, mask_low, skip, mask_skip, weight, bias)
    device_type = skip.device.type
    if _autocast.active(device_type):
        x_low, skip, weight = (_autocast.cast(t, device_type) for t in (x_low, skip, weight))
        bias = _autocast.cast_optional(bias, device_type)
        with torch.autocast(device_type, enabled=False):
            return upcat_partial_conv2d(x_low, mask_low, skip, mask_skip, weight, bias)

    height, width = skip.shape[2], skip.shape[3]
    valid_low, valid_skip = _valid(mask_low, x_low), _valid(mask_skip, skip)
    x = torch.cat([_up(_select(valid_low, x_low), height, width), _select(valid_skip, skip)], 1)
    valid_low = _up(valid_low, height, width)
    geometry = centred(weight.shape[2], [1, 1])
    count = x_low.shape[1] * _window_count(valid_low, weight, geometry)
    count = count + skip.shape[1] * _window_count(valid_skip, weight, geometry)
    out = _convolve(x, weight, geometry) * _ratio(weight[0].numel(), count, x)
    if bias is not None:
        out = out + _per_channel(bias, out)
    return _where_alive(out, count, skip), _updated_mask(
        count, skip, mask_skip if mask_low is None else mask_low
    )


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _valid(mask: Tensor | None, x: Tensor) -> Tensor:
    """bool [N or 1, 1 or C, H, W], True = valid; None is all valid, and any nonzero (NaN too) is valid."""
    if mask is None:
        return (
            torch.ones_like(x[:1, :1], dtype=torch.bool)
            if x.shape[0]
            else x.new_ones(1, 1, *x.shape[2:]) != 0
        )
    return mask != 0


def _select(valid: Tensor, x: Tensor) -> Tensor:
    """`x` where valid, else 0, in the dtype of computation."""
    x = x.to(_accumulator(x))
    return torch.where(valid, x, x.new_zeros(()))


def _convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    top, bottom, left, right = geometry.padding
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight.to(x.dtype), None, geometry.stride, 0, geometry.dilation, geometry.groups)


def _window_count(valid: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Valid entries under each window, over all planes of `valid`: int32 [N or 1, 1, H', W'].

    A box filter, so rows are summed first and columns after.
    """
    (sh, sw), (top, bottom, left, right), (dh, dw), _ = geometry
    count = F.pad(valid.sum(1, keepdim=True, dtype=torch.int32), (left, right, top, bottom))
    count = _sum_rows(count, weight.shape[2], sh, dh)
    return _sum_rows(count.transpose(2, 3), weight.shape[3], sw, dw).transpose(2, 3)


def _sum_rows(plane: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    last = plane.shape[2] - dilation * (kernel - 1)
    total = plane[:, :, :last:stride]
    for i in range(1, kernel):
        total = total + plane[:, :, i * dilation : i * dilation + last : stride]
    return total


def _ratio(window: int, count: Tensor, x: Tensor) -> Tensor:
    """sum(1) / sum(M); dead windows, selected away at the end, get a finite value."""
    return window / count.clamp(min=1).to(_accumulator(x))


def _per_channel(vector: Tensor, out: Tensor) -> Tensor:
    return vector.to(out.dtype).view(1, -1, 1, 1)


def _where_alive(out: Tensor, count: Tensor, like: Tensor) -> Tensor:
    """`out` where the window holds a valid entry, else 0, in dtype and layout of `like`."""
    out = torch.where(count > 0, out, out.new_zeros(()))
    return out.to(like.dtype).contiguous(memory_format=memory_format(like))


def _updated_mask(count: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    new_mask = (count > 0).to(x.dtype if mask is None else mask.dtype)
    return new_mask.expand(x.shape[0], -1, -1, -1).contiguous()


def _up(x: Tensor, height: int, width: int) -> Tensor:
    """Nearest 2x up-sampling by index, out[i, j] = x[i >> 1, j >> 1], cut to `height` x `width`."""
    rows, columns = (torch.arange(size, device=x.device) // 2 for size in (height, width))
    return x.index_select(2, rows).index_select(3, columns)
