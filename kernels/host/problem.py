"""A call as the kernels see it: its sizes, its sources, its branches in ascending order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pconv_ext.ops.call import Call

from .masks import Plane
from .taps import Branch, Taps, branches, forward_taps, square


class Source(NamedTuple):
    """A feature map of a call, and how forward gathers from it."""

    number: int  # in the call
    x: Tensor  # [N, C, h, w]
    mask: Plane
    up: bool
    first: int  # of its channels in those of the weights
    branches: tuple[Branch, ...]  # that its pixels are gathered for
    taps: Taps
    word0: int  # of its windows' bits in a row list

    @property
    def channels(self) -> int:
        """Of x."""
        return self.x.shape[1]


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

    @property
    def pixels(self) -> int:
        """Of the output."""
        return self.n * self.ho * self.wo

    @property
    def stride(self) -> list[int]:
        """[sh, sw]."""
        return self.call.geometry.stride

    @property
    def dilation(self) -> list[int]:
        """[dh, dw]."""
        return self.call.geometry.dilation

    @property
    def padding(self) -> tuple[int, int]:
        """Top and left."""
        top, _, left, _ = self.call.geometry.padding
        return top, left

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of the largest window."""
        return self.branches[-1].kh, self.branches[-1].kw

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
    c_out, c_in = call.weights[0].shape[:2]
    parts = branches([(weight.shape[2], weight.shape[3]) for weight in call.weights], c_out * c_in)
    ho, wo = geometry.output_size(h, w, (parts[-1].kh, parts[-1].kw))
    sources: list[Source] = []
    first = word0 = 0
    for number, (x, mask, up) in enumerate(call.sources):
        # a k x k window of the up-sampled map covers (k + 1) / 2 squared pixels, which differ by segment
        own = square((parts[-1].kh + 1) // 2) if up else parts
        taps = forward_taps(own, geometry.dilation, own=up)
        sources.append(Source(number, x, Plane.of(mask, x), up, first, own, taps, word0))
        first += x.shape[1]
        word0 += taps.words
    return Problem(call, tuple(sources), parts, n, h, w, c_out, ho, wo)


def share(weight: Tensor, p: Problem, source: Source) -> Tensor:
    """The part of a weight [C_out, C, kh, kw] that begins with the channels of `source`."""
    return weight[:, source.first :] if len(p.sources) > 1 else weight


def like_weights(weights: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialised contiguous gradients."""
    return [weight.new_empty(weight.shape) for weight in weights]
