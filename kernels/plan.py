"""Geometry of the operators: the constants that the kernels are compiled for. Plain integers, no tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

WORD_BITS = 63  # of an int64, without its sign


class Branch(NamedTuple):
    """One kernel of an operator."""

    kh: int
    kw: int
    oy: int  # where it lies in the window of the largest
    ox: int
    row: int  # of scales and biases
    offset: int  # of its weights in the flat tensor of all, in elements


class Phase(NamedTuple):
    """One pass of a matrix kernel over the taps of a window."""

    kh: int
    kw: int
    oy: int
    ox: int
    slot: int  # first of its weights
    branch_lo: int  # the branches summed in its weights
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
    phases: tuple[Phase, ...]
    slab: int  # slots of the weights of one segment; 0 if all segments share them

    @property
    def words(self) -> int:
        """Words of a window's bits."""
        return -(-self.y.taps * self.x.taps // WORD_BITS)

    @property
    def slots(self) -> int:
        """Taps of all phases."""
        return sum(phase.kh * phase.kw for phase in self.phases)


def branches(kernels: list[tuple[int, int]], c_out: int, c_in: int) -> tuple[Branch, ...]:
    """The kernels (kh, kw) in ascending order, centred in the largest, their weights one after the other."""
    order = sorted(range(len(kernels)), key=lambda i: kernels[i])
    high, wide = kernels[order[-1]]
    result, offset = [], 0
    for i in order:
        kh, kw = kernels[i]
        result.append(Branch(kh, kw, (high - kh) // 2, (wide - kw) // 2, i, offset))
        offset += c_out * c_in * kh * kw
    return tuple(result)


def _phases(parts: tuple[Branch, ...]) -> tuple[Phase, ...]:
    """Each kernel by itself for mixed pixels, then all merged for plain ones."""
    passes = [(b, b + 1) for b in range(len(parts))]
    if len(parts) > 1:
        passes.append((0, len(parts)))
    result, slot = [], 0
    for lo, hi in passes:
        window = parts[hi - 1]
        result.append(Phase(window.kh, window.kw, window.oy, window.ox, slot, lo, hi))
        slot += window.kh * window.kw
    return tuple(result)


def forward_taps(parts: tuple[Branch, ...], dilation: list[int]) -> Taps:
    """Of a convolution, over x."""
    last = parts[-1]
    return Taps(Axis((0,), 1, dilation[0], last.kh), Axis((0,), 1, dilation[1], last.kw), _phases(parts), 0)


def adjoint_taps(
    parts: tuple[Branch, ...], stride: list[int], padding: tuple[int, int], dilation: list[int]
) -> Taps:
    """Of its adjoint, over the scaled gradients."""
    last = parts[-1]
    return Taps(
        _adjoint_axis(last.kh, stride[0], padding[0], dilation[0]),
        _adjoint_axis(last.kw, stride[1], padding[1], dilation[1]),
        _phases(parts),
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


def square_taps(k: int, slab: int = 0) -> Taps:
    """A k x k window of one kernel; `slab` = k * k if each segment has weights of its own."""
    axis = Axis((0,), 1, 1, k)
    return Taps(axis, axis, (Phase(k, k, 0, 0, 0, 0, 1),), slab)


def row_channels(channels: int) -> int:
    """Channels to which a pixel with few of them is filled up; 0 where it has more."""
    return 4 if channels <= 4 else 8 if channels <= 8 else 0


def row_depth(channels: int, columns: int, itemsize: int) -> int:
    """Elements of a row of `columns` taps, if a K step takes all of them at once; 0 if it takes one tap.

    It does for few channels, as long as the row fits the width of a shared memory tile, 128 bytes.
    """
    depth = max(16, power_of_two(row_channels(channels) * columns))
    return depth if row_channels(channels) and depth * itemsize <= 128 else 0


def rounded(n: int, to: int) -> int:
    """The smallest multiple of `to` that is at least `n`."""
    return -(-n // to) * to


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()
