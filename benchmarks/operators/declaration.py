"""What an operator's file declares: its `Layer`s, the arguments of its call, and other ways to compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Composition = Callable[..., tuple[Tensor, Tensor]]  # (out, new_mask)


@dataclass(frozen=True)
class Layer:
    """One layer to measure; `in_channels` is (C,), or (C_low, C_skip) in a decoder stage.

    Its input is what reaches that `stage` of the paper's network, from 1. A layer outside of the network, of
    stage 0, takes the features of the layer `input_of`.
    """

    name: str
    operator: str
    in_channels: tuple[int, ...]
    out_channels: int
    kernel_sizes: tuple[int, ...]
    stride: int
    out_size: int  # side of its output where the image has 256x256 pixels
    stage: int = 0
    input_of: str = ""
    skip: str = ""  # whose input a decoder stage takes as its skip
    groups: int = 1

    @property
    def taps(self) -> int:
        return sum(k * k for k in self.kernel_sizes)


@dataclass
class Problem:
    """One layer with everything that a call of its operator takes.

    `features` holds x [N, C, H, W], or x_low and skip; `masks` for each of them a float plane [N, 1, H, W]
    or None.
    """

    layer: Layer
    features: list[Tensor]
    masks: list[Tensor | None]
    weights: list[Tensor]
    biases: list[Tensor]
    scales: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        scales = [] if self.scales is None else [self.scales]
        return [t for t in [*self.features, *self.weights, *self.biases, *scales] if t.requires_grad]

    def to(self, device: str, dtype: torch.dtype, channels_last: bool = False) -> Problem:
        """The same values as fresh leaves; all but the photographs themselves require a gradient.

        `channels_last` lays out features and weights so, otherwise they stay as they are.
        """

        def leaf(t: Tensor, requires_grad: bool = True) -> Tensor:
            last = channels_last and t.dim() == 4
            layout = torch.channels_last if last else torch.preserve_format
            copy = t.detach().to(device, dtype, copy=True, memory_format=layout)
            return copy.requires_grad_(requires_grad)

        return Problem(
            self.layer,
            [leaf(t, t.shape[1] != 3) for t in self.features],
            [None if m is None else m.to(device, dtype) for m in self.masks],
            [leaf(t) for t in self.weights],
            [leaf(t) for t in self.biases],
            None if self.scales is None else leaf(self.scales),
        )


@dataclass(frozen=True)
class Operator:
    """An operator of `pconv_ext`, what is measured of it, and what with.

    The naive forms take `arguments` and then one tensor of ones for each kernel: like its weight beside
    masks [N, C, H, W] in `naive_c`, [1, 1, k, k] beside masks [N, 1, H, W] in `naive_1`. The hybrid takes
    `arguments` alone.
    """

    name: str
    layers: Sequence[Layer]
    quick: Sequence[Layer]  # that stand for all of them in quick runs and in profiles
    kernels: Sequence[Layer]  # that together launch every kind of its kernels, for compute-sanitizer
    arguments: Callable[[Problem], tuple[Any, ...]]  # of its function in `pconv_ext`, in their order
    naive_c: Composition
    naive_1: Composition
    hybrid: Composition
    thorough: bool = False  # whether all masks and torch.compile are in every run but a quick one
    scaled: bool = False  # whether it takes one scale for each kernel and output channel
