"""Sizes of tiles and buffers: how channels are filled up. Plain integers."""

from __future__ import annotations


def rounded(n: int, to: int) -> int:
    """The smallest multiple of `to` that is at least `n`."""
    return -(-n // to) * to


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


def row_channels(channels: int) -> int:
    """Channels to which a pixel with few of them is filled up; 0 where it has more."""
    return 4 if channels <= 4 else 8 if channels <= 8 else 0


def row_depth(channels: int, columns: int, itemsize: int) -> int:
    """Elements of a row of `columns` taps, if a K step takes all of them at once; 0 if it takes one tap.

    It does for few channels, as long as the row fits the width of a shared memory tile, 128 bytes.
    """
    depth = max(16, power_of_two(row_channels(channels) * columns))
    return depth if row_channels(channels) and depth * itemsize <= 128 else 0
