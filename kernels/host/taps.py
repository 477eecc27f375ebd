"""Branches, passes and taps: what a matrix kernel gathers, in which order. Plain integers, no tensors."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

WORD_BITS = 63  # of an int64, without its sign


class Branch(NamedTuple):
    """One weight of a call: the window that it covers, and where its values are."""

    kh: int
    kw: int
    oy: int  # where it lies in the window of the largest
    ox: int
    number: int  # of its weight in the call, and of its row of scales
    offset: int  # of its weight in the flat tensor of all, in elements

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Size, and place in the window of the largest."""
        return self[:4]


class Pass(NamedTuple):
    """One time that a matrix kernel goes over the taps of a window: those of a branch, or of all merged."""

    kh: int
    kw: int
    oy: int
    ox: int
    slot: int  # first of its packed weights
    branch_lo: int  # the branches summed in them
    branch_hi: int


class Axis(NamedTuple):
    """Taps along one direction. Forward ones are ``Axis((0,), 1, dilation, kernel)``."""

    first: tuple[int, ...]  # the first tap for each residue of the pixel
    step: int  # from one tap to the next
    jump: int  # in pixels of the tensor gathered from
    taps: int  # at most


class Taps(NamedTuple):
    """What a matrix kernel gathers from one tensor, for every pixel of a row list."""

    y: Axis
    x: Axis
    passes: tuple[Pass, ...]
    slab: int  # slots of the weights of one segment; 0 if all segments share them

    @property
    def words(self) -> int:
        """Words of a window's bits."""
        return -(-self.y.taps * self.x.taps // WORD_BITS)

    @property
    def slots(self) -> int:
        """Taps of all passes."""
        return sum(one.kh * one.kw for one in self.passes)


@lru_cache(maxsize=1024)
def branches(windows: tuple[tuple[int, int], ...], planes: int) -> tuple[Branch, ...]:
    """The windows (kh, kw) in ascending order, centred in the largest, their weights one after the other.

    `planes`: pairs of an output and an input channel, each of which has a window in a weight.
    """
    order = sorted(range(len(windows)), key=lambda i: windows[i])
    high, wide = windows[order[-1]]
    result, offset = [], 0
    for i in order:
        kh, kw = windows[i]
        result.append(Branch(kh, kw, (high - kh) // 2, (wide - kw) // 2, i, offset))
        offset += planes * kh * kw
    return tuple(result)


@lru_cache(maxsize=64)
def square(k: int) -> tuple[Branch, ...]:
    """The only branch of a k x k window."""
    return (Branch(k, k, 0, 0, 0, 0),)


def _passes(parts: tuple[Branch, ...]) -> tuple[Pass, ...]:
    """Each branch by itself for mixed pixels, then all merged for plain ones."""
    ranges = [(b, b + 1) for b in range(len(parts))]
    if len(parts) > 1:
        ranges.append((0, len(parts)))
    result, slot = [], 0
    for lo, hi in ranges:
        last = parts[hi - 1]
        result.append(Pass(*last.window, slot, lo, hi))
        slot += last.kh * last.kw
    return tuple(result)


@lru_cache(maxsize=1024)
def forward_taps(parts: tuple[Branch, ...], dilation: tuple[int, int], own: bool = False) -> Taps:
    """Of a convolution, over x. `own`: each segment has weights of its own."""
    last, passes = parts[-1], _passes(parts)
    y, x = Axis((0,), 1, dilation[0], last.kh), Axis((0,), 1, dilation[1], last.kw)
    return Taps(y, x, passes, sum(one.kh * one.kw for one in passes) if own else 0)


@lru_cache(maxsize=1024)
def adjoint_taps(
    parts: tuple[Branch, ...], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Taps:
    """Of its adjoint, over the scaled gradients."""
    last = parts[-1]
    return Taps(
        _adjoint_axis(last.kh, stride[0], padding[0], dilation[0]),
        _adjoint_axis(last.kw, stride[1], padding[1], dilation[1]),
        _passes(parts),
        0,
    )


def _adjoint_axis(k: int, stride: int, padding: int, dilation: int) -> Axis:
    """Tap t reaches pixels y with (y + padding - t * dilation) divisible by the stride."""
    common = math.gcd(stride, dilation)
    step = stride // common
    first = []
    for residue in range(stride):
        fitting = [t for t in range(min(step, k)) if (residue + padding - t * dilation) % stride == 0]
        first.append(fitting[0] if fitting else k)  # k: none
    return Axis(tuple(first), step, dilation // common, -(-k // step))
