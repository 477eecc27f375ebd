"""Masks with holes: rectangles and brush strokes made from a seed and an index, and folders of pictures.

In every mask 1 is valid and 0 is a hole; each is a torch.uint8 [1, H, W]. A generated mask depends on its
arguments alone, not on workers, processes or the order of calls (with one version of NumPy, whose streams of
random numbers may change between versions).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import _pictures
from ._arguments import choice, integer, interval
from ._extras import require
from ._random import SEED_LIMIT, Stream, generator

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["BINS", "MaskFolder", "find_bin", "hole_ratio", "irregular", "load", "mixed", "rectangle"]

_SHARES = (
    0.3,
    0.2,
    0.2,
    0.1,
    0.1,
    0.1,
)  # of rectangles, and of strokes in each of BINS, in what `mixed` makes
#: The hole ratios that the paper's ablation study is divided by, each [low, high).
BINS = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5))


def rectangle(
    height: int,
    width: int,
    seed: int,
    index: int,
    *,
    count: int = 1,
    low: float = 0.1,
    high: float = 0.25,
) -> Tensor:
    """Make a mask with rectangular holes, as the paper trains with.

    Both sides of each rectangle are uniform in [low * height, high * height], in whole pixels, at least one
    and no more than the picture has; its place is uniform among those inside the picture. Rectangles may
    overlap.

    Args:
        height, width: of the mask, in pixels.
        seed, index: in [0, 2**64); the mask depends on these and the other arguments alone.
        count: number of rectangles.
        low, high: range of the sides as a fraction of the height, 0 <= low <= high <= 1.

    Returns:
        uint8 [1, height, width], 1 = valid.

    Raises:
        TypeError, ValueError: an argument of another type or out of its range.

    Source: section 4.2 of the paper on multi-scale feature extraction and fusion, "mask size".
    """
    user = "masks.rectangle"
    height, width = integer(user, "height", height, 1), integer(user, "width", width, 1)
    _check_random(user, seed, index)
    count = integer(user, "count", count, 1)
    interval(user, "low and high", low, high, "0 <= low <= high <= 1", (0, 1))
    rng = generator(Stream.RECTANGLE, seed, index)
    smallest = max(1, math.ceil(low * height))
    largest = max(smallest, math.floor(high * height))
    mask = np.ones((1, height, width), np.uint8)
    for _ in range(count):
        rows, columns = rng.integers(smallest, largest + 1, 2)
        rows, columns = min(int(rows), height), min(int(columns), width)
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        mask[0, top : top + rows, left : left + columns] = 0
    return torch.from_numpy(mask)


def irregular(height: int, width: int, low: float, high: float, seed: int, index: int) -> Tensor:
    """Make a mask whose holes are brush strokes and cover a share of the picture in [low, high).

    The number of hole pixels is drawn first, uniformly among those in the bin, and strokes are painted until
    it is reached: the last ends in the pixel that completes it. So the bin holds exactly, also for small
    pictures. A stroke is a random walk of a round brush. It leaves the picture at one side and comes back at
    the other, which makes every pixel as likely a hole as any other, at the border and inside. Masks of one
    index in different bins have strokes in common.

    Args:
        height, width: of the mask, in pixels.
        low, high: the bin, 0 <= low < high <= 1, see `BINS`; low <= holes / (height * width) < high.
        seed, index: in [0, 2**64); the mask depends on these and the other arguments alone.

    Returns:
        uint8 [1, height, width], 1 = valid.

    Raises:
        TypeError, ValueError: an argument of another type or out of its range; a picture so small that no
            number of pixels falls into the bin.
    """
    user = "masks.irregular"
    height, width = integer(user, "height", height, 1), integer(user, "width", width, 1)
    _check_random(user, seed, index)
    fewest, most = _hole_counts(user, height, width, low, high)
    rng = generator(Stream.IRREGULAR, seed, index)
    holes = int(rng.integers(fewest, most + 1))
    painted = np.zeros(height * width, np.bool_)
    missing = holes
    while missing > 0:
        stroke = _stroke(rng, painted, height, width, holes)
        fresh = stroke[~painted[stroke]]
        painted[fresh] = True
        total = np.count_nonzero(painted)
        if total > holes:
            first = np.sort(np.unique(fresh, return_index=True)[1])  # where each pixel is met first
            painted[fresh[first[missing:]]] = False
            break
        missing = holes - total
    return torch.from_numpy((~painted).astype(np.uint8).reshape(1, height, width))


def mixed(height: int, width: int, seed: int, index: int, *, count: int = 1) -> Tensor:
    """Make a mask of holes of every kind: 3 in 10 of `rectangle`, 2 of `irregular` in each of the two bins of
    the smallest holes, 1 in each of the others.

    Args:
        height, width: of the mask, in pixels.
        seed, index: in [0, 2**64); the mask depends on these and the other arguments alone.
        count: number of rectangles, where it is of these.

    Returns:
        uint8 [1, height, width], 1 = valid.

    Raises:
        TypeError, ValueError: as for `rectangle` and `irregular`.
    """
    user = "masks.mixed"
    height, width = integer(user, "height", height, 1), integer(user, "width", width, 1)
    _check_random(user, seed, index)
    kind = int(generator(Stream.MIXED, seed, index).choice(len(_SHARES), p=_SHARES))
    if kind == 0:
        return rectangle(height, width, seed, index, count=count)
    return irregular(height, width, *BINS[kind - 1], seed, index)


def hole_ratio(mask: Tensor) -> float:
    """Share of the pixels of `mask`, any shape and dtype, that are 0, as a Python float in [0, 1].

    Exact to float64, so that it agrees with the bins of `irregular`.

    Raises:
        TypeError, ValueError: not a tensor, or one without elements.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"masks.hole_ratio: mask must be a tensor, got {type(mask).__name__}")
    if mask.numel() == 0:
        raise ValueError(f"masks.hole_ratio: mask must have elements, got shape {list(mask.shape)}")
    return (mask.numel() - int(torch.count_nonzero(mask))) / mask.numel()


def load(
    picture: str | os.PathLike[str] | Image.Image,
    height: int | None = None,
    width: int | None = None,
    *,
    holes: str = "black",
    threshold: int = 127,
) -> Tensor:
    """Make a mask of a picture.

    Args:
        picture: a file, or a ``PIL.Image.Image``. Greyscale or turned into it; where it has transparent and
            other parts, transparent is dark and all else light, whatever the colours; of values that are all
            0 and 1, 1 is light.
        height, width: size of the mask, by nearest neighbour; by default that of the picture.
        holes: "black" if dark pixels are holes (the convention of this package, 1 = valid), "white" if light
            ones are. Both kinds are in circulation, NVIDIA's sets among them: look at one.
        threshold: 8-bit values above it are light, in [0, 255].

    Returns:
        uint8 [1, height, width], 1 = valid.

    Raises:
        TypeError, ValueError: an argument of another type or out of its range.
        UnreadablePictureError: a ValueError that names the file and says why.
        ImportError: Pillow is missing.
    """
    user = "masks.load"
    _check_polarity(user, holes, threshold)
    if (height is None) != (width is None):
        raise ValueError(
            f"{user}: height and width must be given both or neither, got {height!r} and {width!r}"
        )
    image = _pictures.open_whole(picture) if isinstance(picture, (str, os.PathLike)) else picture
    pil = require(user, "PIL.Image")
    if not isinstance(image, pil.Image):
        raise TypeError(f"{user}: picture must be a path or a PIL image, got {type(image).__name__}")
    grey = _pictures.lightness(image)
    if height is not None and width is not None:
        size = integer(user, "width", width, 1), integer(user, "height", height, 1)
        grey = grey.resize(size, pil.Resampling.NEAREST)
    light = np.asarray(grey) > threshold
    valid = light if holes == "black" else ~light
    return torch.from_numpy(valid.astype(np.uint8)[None])


class MaskFolder:
    """The masks in a folder of pictures, such as NVIDIA's irregular set.

    Args:
        root: the folder, searched recursively; the order is that of the sorted paths.
        holes, threshold: as for `load`; say which polarity the files have.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: no folder, no pictures in it, a bad argument.
    """

    def __init__(self, root: str | os.PathLike[str], *, holes: str = "black", threshold: int = 127) -> None:
        _check_polarity("MaskFolder", holes, threshold)
        self.paths = _pictures.find("MaskFolder", root)
        self.holes = holes
        self.threshold = threshold

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, index: int, height: int | None = None, width: int | None = None) -> Tensor:
        """Return mask `index` as uint8 [1, height, width], by default of the size of its picture.

        Raises:
            IndexError: `index` is not in [0, len).
            UnreadablePictureError: a ValueError that names the file and says why.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"MaskFolder: index must be in [0, {len(self)}), got {index}")
        return load(self.paths[index], height, width, holes=self.holes, threshold=self.threshold)

    def __getitem__(self, index: int) -> Tensor:
        return self.get(index)


def find_bin(ratio: float, bins: Sequence[tuple[float, float]] = BINS) -> int | None:
    """Index of the first of `bins` with low <= ratio < high; None if there is none."""
    return next((i for i, (low, high) in enumerate(bins) if low <= ratio < high), None)


def _check_random(user: str, seed: Any, index: Any) -> None:
    integer(user, "seed", seed, 0, SEED_LIMIT)
    integer(user, "index", index, 0, SEED_LIMIT)


def _check_polarity(user: str, holes: Any, threshold: Any) -> None:
    choice(user, "holes", holes, ("black", "white"))
    integer(user, "threshold", threshold, 0, 256)


def _hole_counts(user: str, height: int, width: int, low: Any, high: Any) -> tuple[int, int]:
    """Fewest and most hole pixels n with low <= n / (height * width) < high, as float64 divides."""
    interval(user, "low and high", low, high, "0 <= low < high <= 1", (0, 1))
    area = height * width
    # The rounding of low * area can put the first guess beside the bin: step into it by the test itself.
    fewest = max(0, math.floor(low * area) - 1)
    while fewest / area < low:
        fewest += 1
    most = min(area, math.ceil(high * area) + 1)
    while most > 0 and most / area >= high:
        most -= 1
    if most < fewest or most / area >= high:
        raise ValueError(
            f"{user}: low and high must have a whole number of hole pixels between them, got [{low}, {high}) "
            f"for {height}x{width}, which is [{low * area:g}, {high * area:g}) pixels"
        )
    return fewest, most


def _stroke(
    rng: np.random.Generator, painted: NDArray[np.bool_], height: int, width: int, holes: int
) -> NDArray[np.int64]:
    """Pixels of one stroke as indices into the flat mask, in the order the brush meets them; with repeats.

    It starts on an unpainted pixel, so painting always comes to an end.
    """
    free = np.flatnonzero(~painted)
    row, column = divmod(int(free[rng.integers(len(free))]), width)
    side, span = min(height, width), math.sqrt(height * width)
    # Thinner for small holes, which would otherwise be a single blot.
    thickest = min(side / 11, math.sqrt(holes) / 4)
    radius = rng.uniform(min(side / 50, thickest), thickest)
    step = max(1.0, radius / 2)
    points = 1 + int(rng.uniform(0.2, 1.0) * span / step)
    # Gentle turns all along, about one sharp one a stroke. Scaled by the step, so that a curve is as curved
    # whatever the brush.
    turns = rng.normal(0, 1.8 * math.sqrt(step / span), points)
    turns += np.where(rng.random(points) < 2 * step / span, rng.uniform(-2.5, 2.5, points), 0)
    heading = rng.uniform(0, 2 * math.pi) + np.cumsum(turns)
    rows = np.rint(row + np.cumsum(step * np.sin(heading)) - step * math.sin(heading[0])).astype(np.int64)
    columns = np.rint(column + np.cumsum(step * np.cos(heading)) - step * math.cos(heading[0]))
    brush_rows, brush_columns = _brush(radius)
    down = (rows[:, None] + brush_rows) % height
    right = (columns.astype(np.int64)[:, None] + brush_columns) % width
    return (down * width + right).ravel()


def _brush(radius: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of a disc around 0, from its centre outwards."""
    reach = int(radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    distance = rows * rows + columns * columns
    order = np.argsort(distance, kind="stable")
    order = order[: np.count_nonzero(distance <= radius * radius)]
    return rows[order], columns[order]
