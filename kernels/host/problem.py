"""A call as the kernels see it: its sizes, its sources, its branches in ascending order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pconv_ext.ops.call import Call

from . import devices
from .masks import Plane
from .taps import Branch, Taps, branches, forward_taps, square


class Source(NamedTuple):
    """A feature map of a call, and how forward gathers from it."""

    number: int  # in the call
    x: Tensor  # [N, C, h, w]
    mask: Plane
    up: bool
    channels: int  # of x
    first: int  # of them in the channels of the weights
    branches: tuple[Branch, ...]  # that its pixels are gathered for
    taps: Taps
    word0: int  # of its windows' bits in a row list


class Problem(NamedTuple):
    """Sizes of one call; its last source is the one that windows move over."""

    call: Call
    sources: tuple[Source, ...]
    branches: tuple[Branch, ...]  # the last one's window is the largest
    n: int
    h: int
    w: int
    c_out: int
    ho: int
    wo: int
    window: tuple[int, int]  # height and width of the largest
    stride: tuple[int, int]
    padding: tuple[int, int]  # top and left
    dilation: tuple[int, int]
    precision: str  # of float32 products

    @property
    def pixels(self) -> int:
        """Of the output."""
        return self.n * self.ho * self.wo

    @property
    def counted(self) -> list[int]:
        """What a valid pixel of each source counts in a window."""
        return [source.channels for source in self.sources] if len(self.sources) > 1 else [1]

    @property
    def largest_ratio(self) -> int:
        """Of a window with a single valid entry."""
        kh, kw = self.window
        return -(-sum(self.counted) * kh * kw // min(self.counted))


def problem(call: Call) -> Problem:
    """Of a call over one source, or over an up-sampled one and one that is not, with a single branch."""
    like, geometry = call.like, call.geometry
    n, _, h, w = like.shape
    c_out, c_in, _, _ = call.weights[0].shape
    parts = branches(tuple([weight.shape[2:] for weight in call.weights]), c_out * c_in)
    kh, kw = parts[-1][:2]
    ho, wo = geometry.output_size(h, w, (kh, kw))
    (sh, sw), (top, _, left, _), (dh, dw), _ = geometry
    sources: list[Source] = []
    first = word0 = 0
    for number, (x, mask, up) in enumerate(call.sources):
        # a k x k window of the up-sampled map covers (k + 1) / 2 squared pixels, which differ by segment
        own = square((kh + 1) // 2) if up else parts
        taps, channels = forward_taps(own, (dh, dw), up), x.shape[1]
        sources.append(Source(number, x, Plane.of(mask, x), up, channels, first, own, taps, word0))
        first += channels
        word0 += taps.words
    return Problem(
        call, tuple(sources), parts, n, h, w, c_out, ho, wo, (kh, kw), (sh, sw), (top, left), (dh, dw),
        devices.precision(like.dtype),
    )  # fmt: skip


def share(weight: Tensor, p: Problem, source: Source) -> Tensor:
    """The part of a weight [C_out, C, kh, kw] that begins with the channels of `source`."""
    return weight[:, source.first :] if source.first else weight


def like_weights(weights: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialised contiguous gradients."""
    return [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights]
