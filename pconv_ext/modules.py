"""Layers: `PartialConv2d`, a drop-in for NVIDIA's class of that name, and `MSFEF`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import _backends
from ._prepack import Prepackable
from .functional import msfef, partial_conv2d
from .ops import msfef as _msfef
from .ops import partial_conv2d as _partial_conv2d


class PartialConv2d(Prepackable, nn.Conv2d):
    """Partial convolution layer: `pconv_ext.partial_conv2d` with the arguments and parameters of
    ``nn.Conv2d``.

    Interface and ``state_dict`` keys (weight, bias) of NVIDIA's PartialConv2d; nothing is cached between
    calls, unless `pconv_ext.prepack` asks for it.

    Args:
        *args, **kwargs: those of ``torch.nn.Conv2d``; padding may be "same" or "valid", padding_mode only
            "zeros".
        multi_channel: masks have one plane per channel, [N or 1, C_in, H, W] (a single plane, which then
            stands for all channels, is taken as well), and the updated mask is returned as [N, C_out, H',
            W'].
        return_mask: return (out, new_mask) instead of out.
        backend: as for `pconv_ext.partial_conv2d`.

    Raises:
        ValueError: padding modes other than zeros, an unknown backend, and what ``nn.Conv2d`` raises.
    """

    _operator = _partial_conv2d

    def __init__(
        self,
        *args: Any,
        multi_channel: bool = False,
        return_mask: bool = False,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_mode != "zeros":
            raise ValueError(f"PartialConv2d: padding_mode must be 'zeros', got {self.padding_mode!r}")
        _backends.check_name("PartialConv2d", backend)
        self.multi_channel = multi_channel
        self.return_mask = return_mask
        self.backend = backend

    def partial_conv(self, input: Tensor, mask_in: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (out, new_mask), shapes as of `forward`, whatever return_mask says."""
        if mask_in is not None and not self.multi_channel and mask_in.dim() == 4 and mask_in.shape[1] != 1:
            raise ValueError(
                "PartialConv2d: mask_in must have shape [N or 1, 1, H, W] unless multi_channel=True, "
                f"got {list(mask_in.shape)}"
            )
        arguments = self._arguments(input, mask_in)
        result = self._packed and self._from_packed(arguments)
        out, new_mask = result or partial_conv2d(*arguments, backend=self.backend)
        if self.multi_channel:
            new_mask = new_mask.expand(-1, self.out_channels, -1, -1)
        return out, new_mask

    def _arguments(self, input: Tensor, mask_in: Tensor | None) -> tuple[Any, ...]:
        window = self.stride, self.padding, self.dilation, self.groups
        return input, mask_in, self.weight, self.bias, *window

    def _example(self) -> tuple[Any, ...]:
        size = [
            32 * min(s, 2) + d * (k - 1)
            for s, d, k in zip(self.stride, self.dilation, self.kernel_size, strict=True)
        ]
        return self._arguments(self.weight.new_empty(1, self.in_channels, *size), None)

    def forward(self, input: Tensor, mask_in: Tensor | None = None) -> Any:
        """Apply the layer.

        Args:
            input: [N, C_in, H, W].
            mask_in: [N or 1, 1 (C_in if multi_channel), H, W], nonzero = valid; None = all valid.

        Returns:
            out [N, C_out, H', W'], or (out, new_mask) if return_mask; new_mask is [N, 1, H', W'], with
            multi_channel [N, C_out, H', W'], an expanded view.
        """
        out, new_mask = self.partial_conv(input, mask_in)
        return (out, new_mask) if self.return_mask else out

    def __reduce_ex__(self, protocol: Any) -> Any:
        # copy.deepcopy, with which torch.nn.utils.fuse_conv_bn_eval begins: for all it knows this is a Conv2d
        copying = sys._getframe().f_back
        caller = copying.f_back if copying and copying.f_code is copy.deepcopy.__code__ else None
        if caller and caller.f_code is fuse_conv_bn_eval.__code__:
            raise TypeError(
                "PartialConv2d: fuse_conv_bn_eval cannot fuse it with a batch normalisation, which makes of "
                "the zeros in dead windows what no weight and bias can; leave the two as they are"
            )
        return super().__reduce_ex__(protocol)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, multi_channel={self.multi_channel}, return_mask={self.return_mask}, "
            f"backend={self.backend!r}"
        )


class MSFEF(Prepackable):
    """Multi-scale feature extraction and fusion: partial convolutions of several kernel sizes, scaled and
    summed.

    Computes `pconv_ext.msfef`. ``branches`` holds a `PartialConv2d` for every kernel size, in the order
    given, and ``scales`` [len(kernel_sizes), out_channels] their weights in the sum, starting at 1 /
    len(kernel_sizes).

    Args:
        in_channels, out_channels: C_in and C_out.
        kernel_sizes: distinct odd ints; padding is k // 2.
        stride: int or (vertical, horizontal), common to all branches.
        bias: whether the branches have one.
        backend: as for `pconv_ext.msfef`.

    Raises:
        ValueError: no kernel sizes, even or repeated ones, an unknown backend.
    """

    _operator = _msfef

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int] = (3, 5, 7),
        stride: int | tuple[int, int] = 2,
        bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        sizes = tuple(kernel_sizes)
        if not sizes or any(k < 1 or k % 2 == 0 for k in sizes) or len(set(sizes)) != len(sizes):
            raise ValueError(
                f"MSFEF: kernel_sizes must be distinct odd ints, at least one, got {kernel_sizes!r}"
            )
        _backends.check_name("MSFEF", backend)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_sizes = sizes
        self.stride = stride
        self.backend = backend
        self.branches = nn.ModuleList(
            PartialConv2d(
                in_channels, out_channels, k, stride, k // 2, bias=bias, return_mask=True, backend=backend
            )
            for k in sizes
        )
        self.scales = nn.Parameter(torch.full((len(sizes), out_channels), 1 / len(sizes)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the block.

        Args:
            x: [N, C_in, H, W].
            mask: [N or 1, 1, H, W], nonzero = valid; None = all valid.

        Returns:
            out [N, C_out, H', W'] and new_mask [N, 1, H', W'].
        """
        arguments = self._arguments(x, mask)
        result = self._packed and self._from_packed(arguments)
        return result or msfef(*arguments, backend=self.backend)

    def _arguments(self, x: Tensor, mask: Tensor | None) -> tuple[Any, ...]:
        branches = cast("Iterable[PartialConv2d]", self.branches)
        weights = [branch.weight for branch in branches]
        biases = [branch.bias for branch in branches if branch.bias is not None]
        return x, mask, weights, biases or None, self.scales, self.stride

    def _example(self) -> tuple[Any, ...]:
        strides = self.stride if isinstance(self.stride, (list, tuple)) else (self.stride, self.stride)
        return self._arguments(
            self.scales.new_empty(1, self.in_channels, *[32 * min(s, 2) for s in strides]), None
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_sizes={self.kernel_sizes}, "
            f"stride={self.stride}, backend={self.backend!r}"
        )
