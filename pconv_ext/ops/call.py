"""One call of an operator, whichever it is: feature maps, the windows that move over them, and how they move.

Every operator is a sum of convolutions over one image, the concatenation of its sources along the channels.
An operator's file says how its arguments become a `Call`; fakes, the choice of a backend and the host code of
the GPU ask a `Call`, never an argument by its position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .._geometry import Geometry


class Source(NamedTuple):
    """A feature map with its mask."""

    x: Tensor  # [N, C, h, w]
    mask: Tensor | None  # [N or 1, 1, h, w], or [N or 1, C, h, w]; None: all valid
    up: bool = False  # read through a nearest 2x up-sampling, cut to the size of the last source


class Call(NamedTuple):
    """Checked arguments of one operator. The last source has the size, dtype and layout of the output."""

    op: str
    sources: tuple[Source, ...]
    weights: Sequence[Tensor]  # of each branch [C_out, C / groups, kh, kw], in the order given
    biases: Sequence[Tensor]  # of each branch [C_out], or none; not given to a backward that needs none
    scales: Tensor | None  # [branches, C_out], what each branch is multiplied with; None: one
    geometry: Geometry  # of the largest window, in which the others are centred

    @property
    def like(self) -> Tensor:
        """The feature map whose size the windows move over, and whose dtype and layout the output takes."""
        return self.sources[-1].x

    @property
    def mask_like(self) -> Tensor:
        """What the updated mask takes its dtype from: the first mask given, else the features."""
        for source in self.sources:
            if source.mask is not None:
                return source.mask
        return self.like

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width of the largest window."""
        return (
            max(weight.shape[2] for weight in self.weights),
            max(weight.shape[3] for weight in self.weights),
        )

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return self.geometry.output_size(self.like.shape[2], self.like.shape[3], self.largest)


class Needs(NamedTuple):
    """Which gradients of a `Call` to compute."""

    sources: Sequence[bool]
    weights: bool
    biases: bool
    scales: bool = False


class Gradients(NamedTuple):
    """Gradients of a `Call`; None (or an empty list) where not needed."""

    sources: Sequence[Tensor | None]
    weights: Sequence[Tensor] = ()
    biases: Sequence[Tensor] = ()
    scales: Tensor | None = None
