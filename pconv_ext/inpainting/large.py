"""Large pictures: their holes filled in crops, at a scale at which a network knows holes of their size.

A network is trained with pictures of some size and holes of some width. Of a larger picture it needs only
what is around the holes, and a wider hole it fills better where the picture is smaller; one beyond its reach
not at all. So holes that lie together are cut out with their surroundings, the crop is made smaller until its
holes are a quarter as wide as the pictures of training, filled, made larger and put back: only pixels of
holes change, and time and memory follow the holes, not the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ._morphology import bounds

__all__ = ["fill_crops", "fill_resized"]

#: Called with an image [1, C, h, w], float32 in [0, 1], 0 in holes, and bool [1, 1, h, w], True = valid; the
#: image with its holes filled.
Fill: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_CELL = 32  # pixels: holes nearer than this, or a little more, are filled together
_WIDTH = 1 / 4  # of a hole, as a share of the pictures of training; half and twice as much lose 0.1 to 0.4 dB
_SMALLEST = 2  # times smaller than pictures of training becomes no picture, for no hole
_MEASURED = 256  # pixels: a hole's width is measured in a picture no larger than this


class _Box(NamedTuple):
    top: int
    left: int
    bottom: int
    right: int

    @property
    def places(self) -> tuple[Any, ...]:
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def parts(self, side: int) -> Iterator[_Box]:
        """Itself, or where it is larger than twice `side` parts of that size."""
        height, width = (side if 2 * side < full else full for full in self.size)
        for top in range(self.top, self.bottom, height):
            for left in range(self.left, self.right, width):
                yield _Box(top, left, min(top + height, self.bottom), min(left + width, self.right))

    def within(self, other: _Box) -> _Box:
        """The same in coordinates of `other`."""
        return _Box(
            self.top - other.top, self.left - other.left, self.bottom - other.top, self.right - other.left
        )

    def with_context(self, reach: int, least: int, size: tuple[int, int]) -> _Box:
        """With `reach` pixels around, and at least so large, as far as a picture of this size goes."""
        sides = []
        for low, high, full in ((self.top, self.bottom, size[0]), (self.left, self.right, size[1])):
            side = min(full, max(high - low + 2 * reach, least))
            start = min(max(0, (low + high - side) // 2), full - side)
            sides.append((start, start + side))
        (top, bottom), (left, right) = sides
        return _Box(top, left, bottom, right)


def fill_crops(
    fill: Fill,
    pixels: Tensor,
    valid: Tensor,
    size: int,
    *,
    known: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fill the holes of a picture in crops, in place.

    Args:
        fill: fills a crop, or a part of one.
        pixels: [1, 3, H, W], uint8, or floating in [0, 1]; what holes hold has no influence.
        valid: bool [1, 1, H, W], on the same device.
        size: of the pictures that `fill` is trained with, in pixels.
        known: bool as `valid`, the valid pixels that holes may be filled from; None = all.
        progress: called with the number of holes filled and of all, after each.
    """
    known = (valid if known is None else known).clone()
    boxes = list(_holes(valid[0, 0]))
    for done, box in enumerate(boxes, 1):
        wanted = _width(~valid[0, 0][box.places]) / (_WIDTH * size)
        scale = max(1.0, min(wanted, _SMALLEST * min(_size(valid)) / size))
        for part in box.parts(math.ceil(scale * size)):
            chosen = ~valid[part.places]
            if not chosen.any():
                continue
            its_scale, full = scale, _size(valid)
            around = part.with_context(math.ceil(scale * size / 4), math.ceil(scale * size), full)
            while around.size != full and not known[around.places].any():  # in a wide gap
                its_scale *= 2
                around = part.with_context(0, math.ceil(its_scale * size), full)
            filled = _fill_scaled(fill, unit(pixels[around.places]), known[around.places], its_scale)
            inside = like(filled[part.within(around).places], pixels)
            pixels[part.places] = torch.where(chosen, inside, pixels[part.places])
            known[part.places] |= chosen  # for the part beside it, so that no seam shows
        if progress is not None:
            progress(done, len(boxes))


def fill_resized(
    fill: Fill, pixels: Tensor, valid: Tensor, size: int, *, known: Tensor | None = None
) -> None:
    """Fill the holes of a picture made so small that its shorter side is `size`; see `fill_crops`."""
    scale = max(1.0, min(_size(valid)) / size)
    filled = _fill_scaled(fill, unit(pixels), valid if known is None else known, scale)
    pixels.copy_(torch.where(valid, pixels, like(filled, pixels)))


def _holes(valid: Tensor) -> Iterator[_Box]:
    """The boxes of holes that lie together, in no order; `valid` is [H, W]."""
    height, width = valid.shape
    cells = F.pad(~valid, (0, -width % _CELL, 0, -height % _CELL)).unflatten(1, (-1, _CELL))
    places = cells.unflatten(0, (-1, _CELL)).any(3).any(1).nonzero().tolist()
    waiting = {(row, column) for row, column in places}
    while waiting:
        front, members = [waiting.pop()], []
        while front:
            row, column = front.pop()
            members.append((row, column))
            near = {
                (r, c) for r in (row - 1, row, row + 1) for c in (column - 1, column, column + 1)
            } & waiting
            waiting -= near
            front += near
        rows, columns = zip(*members, strict=True)
        first_row, first_column = min(rows) * _CELL, min(columns) * _CELL
        part = ~valid[first_row : (max(rows) + 1) * _CELL, first_column : (max(columns) + 1) * _CELL]
        (top, bottom), (left, right) = bounds(part)
        yield _Box(first_row + top, first_column + left, first_row + bottom, first_column + right)


def _width(hole: Tensor) -> float:
    """Twice the largest distance of a hole pixel to a valid one, about; `hole` is [H, W]."""
    scale = max(1.0, max(hole.shape) / _MEASURED)
    left = hole[None, None].float()
    if scale > 1:
        left = F.interpolate(left, scale_factor=1 / scale, mode="area")
    left = F.pad((left > 0.5).float(), (1, 1, 1, 1))
    steps = 0
    while left.any():
        left = 1 - F.max_pool2d(1 - left, 3, 1, 1)
        steps += 1
    return 2 * steps * scale


def _fill_scaled(fill: Fill, image: Tensor, valid: Tensor, scale: float) -> Tensor:
    """Fill an image that is made smaller by `scale` meanwhile."""
    full = _size(valid)
    image = image.where(valid, image.new_zeros(()))
    if scale > 1:
        height, width = (max(1, round(side / scale)) for side in full)
        image, valid = _shrunk(image, valid, (height, width))
    filled = fill(image, valid)
    if scale == 1:
        return filled
    return F.interpolate(filled, full, mode="bicubic").clamp(filled.min(), filled.max())


def _shrunk(image: Tensor, valid: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Means of the valid pixels; where there are none, a hole."""
    weight = valid.to(image.dtype)
    share = F.interpolate(weight, size, mode="area")
    sums = F.interpolate(image * weight, size, mode="area")
    return torch.where(share > 0, sums / share, 0), share > 0


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]


def unit(pixels: Tensor) -> Tensor:
    """As float32 in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def like(image: Tensor, pixels: Tensor) -> Tensor:
    """In the dtype and range of `pixels`."""
    return (image * 255).round().to(torch.uint8) if pixels.dtype == torch.uint8 else image.to(pixels.dtype)
