"""The data sets of `pconv_ext.data`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .. import _pictures, masks
from .._arguments import choice, integer, interval
from .._extras import require
from .._random import SEED_LIMIT, Stream, generator
from .._ranges import Ranges, to_unit
from .collections import PictureCollection

if TYPE_CHECKING:
    from PIL import Image

_Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


class PictureDataset(Dataset[Tensor]):
    """Pictures of one size, each a float32 [3, height, width] in [0, 1].

    A picture that cannot be read is reported once, in a UserWarning that names it, and the next readable one
    (the first after the last) stands in for it.

    Args:
        collection: has the pictures; see `folder`, `stanford_cars` and `lsun_church`.
        size: of the items, in pixels: an int for squares or (height, width).
        crop: "center" takes the largest part in the middle that has the shape of the item; "random" a part
            at random, another in every epoch, as torchvision's RandomResizedCrop does; "window" a part at
            random that needs no scaling, the largest in the middle where a picture is too small for that;
            "none" squeezes the whole picture. What is taken is scaled to the size (bicubic, with
            antialiasing).
        scale: range of the share of the picture's area that "random" takes.
        ratio: range of the factor by which "random" changes the aspect ratio of the item.
        flip: mirror every other picture, left to right, others in every epoch.
        seed: of "random" and of mirroring, in [0, 2**64).

    Raises:
        TypeError, ValueError: an argument of another type or out of its range; no picture can be read, which
            shows here, before a training starts.
        ImportError: Pillow is missing.
    """

    def __init__(
        self,
        collection: PictureCollection,
        size: int | Sequence[int] = 256,
        *,
        crop: str = "center",
        scale: tuple[float, float] = (0.5, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        user = "PictureDataset"
        require(user, "PIL.Image")
        self.collection = collection
        choice(user, "crop", crop, ("center", "random", "window", "none"))
        self.crop = crop
        interval(user, "scale", *_ends(user, "scale", scale), "0 < low <= high <= 1", (1e-6, 1))
        interval(user, "ratio", *_ends(user, "ratio", ratio), "0 < low <= high", (1e-6, math.inf))
        self.scale, self.ratio, self.flip = scale, ratio, flip
        self.seed = integer(user, "seed", seed, 0, SEED_LIMIT)
        # In shared memory, so that workers, also persistent ones, see a new epoch or size and what others
        # reported.
        self._size = torch.tensor(_pair(user, size)).share_memory_()
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(collection), dtype=torch.bool).share_memory_()
        self._load(0)

    def __len__(self) -> int:
        return len(self.collection)

    @property
    def height(self) -> int:
        """Of the items, in pixels."""
        return int(self._size[0])

    @property
    def width(self) -> int:
        """Of the items, in pixels."""
        return int(self._size[1])

    def set_size(self, size: int | Sequence[int]) -> None:
        """Choose another size of the items, before a loader is iterated over; its workers see it."""
        self._size.copy_(torch.tensor(_pair("PictureDataset.set_size", size)))

    @property
    def epoch(self) -> int:
        """The epoch that random crops, and masks drawn for these pictures, belong to; 0 at first."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, before a loader is iterated over; its workers see it."""
        self._epoch.fill_(integer("PictureDataset.set_epoch", "epoch", epoch, 0, 2**31))

    def __getitem__(self, index: int) -> Tensor:
        """Return picture `index`, float32 [3, height, width] in [0, 1].

        Raises:
            IndexError: `index` is not in [0, len).
            ValueError: no picture can be read any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"PictureDataset: index must be in [0, {len(self)}), got {index}")
        return self._item(self._load(index), index)

    def _item(self, picture: Any, index: int) -> Tensor:
        return _rgb_to_tensor(self._fit(picture, index))

    def is_stand_in(self, index: int) -> bool:
        """Whether item `index`, which was taken before in this process, is another picture's."""
        return bool(self._unreadable[index])

    def _load(self, index: int) -> Any:
        """Picture `index` or, if it is unreadable, the first readable one after it."""
        reason = "they were found unreadable before"
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            if self._unreadable[candidate]:
                continue
            try:
                return self.collection.load(candidate)
            except ImportError:
                raise  # a missing dependency is no damaged picture
            except Exception as error:
                reason = str(error) or type(error).__name__
                self._unreadable[candidate] = True
                name = self.collection.name(candidate)
                warnings.warn(f"{name} is left out, another picture takes its place: {reason}", stacklevel=2)
        raise ValueError(f"none of {len(self)} pictures can be read; the last: {reason}")

    def _fit(self, picture: Image.Image, index: int) -> Image.Image:
        filters = require("PictureDataset", "PIL.Image").Resampling
        fitted = picture.resize((self.width, self.height), filters.BICUBIC, self._box(picture.size, index))
        if self._flips(index):
            return fitted.transpose(require("PictureDataset", "PIL.Image").Transpose.FLIP_LEFT_RIGHT)
        return fitted

    def _flips(self, index: int) -> bool:
        return self.flip and bool(generator(Stream.FLIP, self.seed, self.epoch, index).random() < 0.5)

    def _box(self, size: tuple[int, int], index: int) -> _Box:
        """The part that is taken of a picture of `size` (width, height)."""
        rng = generator(Stream.CROP, self.seed, self.epoch, index)
        if self.crop == "random":
            return self._random_box(size, rng)
        free = size[0] - self.width, size[1] - self.height
        if self.crop == "window" and min(free) >= 0:
            left, top = (int(rng.integers(pixels + 1)) for pixels in free)
            return left, top, left + self.width, top + self.height
        return (0, 0, *size) if self.crop == "none" else _center(size, self.width / self.height)

    def _random_box(self, size: tuple[int, int], rng: np.random.Generator) -> _Box:
        width, height = size
        aspect = self.width / self.height
        for _ in range(10):  # as often as torchvision tries
            area = rng.uniform(*self.scale) * width * height
            changed = aspect * math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * changed)), round(math.sqrt(area / changed))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        return _center(size, aspect)


class RasterDataset(PictureDataset):
    """Rasters of one size, each a float32 [C, height, width] with NaN in gaps.

    Scaled, a value is the mean of those that are known nearby, weighed as bilinear interpolation with
    antialiasing does, and a gap where most of them are.

    Args:
        collection: has the rasters; see `rasters`.
        size: as for `PictureDataset`.
        ranges: [low, high] of each channel, which become 0 and 1; None = values stay.
        options: others of `PictureDataset`.

    Raises:
        TypeError, ValueError: as `PictureDataset`.
    """

    def __init__(
        self,
        collection: PictureCollection,
        size: int | Sequence[int] = 256,
        ranges: Ranges | None = None,
        **options: Any,
    ) -> None:
        self.ranges = ranges
        super().__init__(collection, size, **options)

    def _item(self, picture: NDArray[Any], index: int) -> Tensor:
        height, width = picture.shape[1:]
        left, top, right, bottom = self._box((width, height), index)
        rows, columns = slice(round(top), round(bottom)), slice(round(left), round(right))
        part = to_unit(torch.from_numpy(picture[:, rows, columns]), self.ranges)
        part[~part.isfinite()] = math.nan
        return _scaled(part, (self.height, self.width), mirrored=self._flips(index))


class InpaintingDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of a picture, float32 [C, H, W], and a mask, uint8 [1, H, W], 1 = valid.

    The picture is whole: its holes are for the network or the loss to make. Where a raster has a gap in any
    channel, the mask has a hole.

    Args:
        pictures: have the sizes and the epoch.
        holes: "rectangle", as the paper trains with; "mixed", see `pconv_ext.masks.mixed`; a bin (low, high)
            of hole ratios, such as one of `pconv_ext.masks.BINS`, for irregular strokes; or a
            `pconv_ext.masks.MaskFolder`, from which masks are drawn at random and scaled to the pictures.
        fixed: a picture keeps its mask in all epochs. By default True for a bin, which is for evaluation,
            else False.
        seed: of the masks, in [0, 2**64).
        count: number of rectangles.

    Raises:
        TypeError, ValueError: an argument of another type or out of its range, a bin that pictures of this
            size cannot have.
    """

    def __init__(
        self,
        pictures: PictureDataset,
        holes: str | tuple[float, float] | masks.MaskFolder = "rectangle",
        *,
        fixed: bool | None = None,
        seed: int = 0,
        count: int = 1,
    ) -> None:
        user = "InpaintingDataset"
        self.pictures = pictures
        self.seed = integer(user, "seed", seed, 0, SEED_LIMIT)
        self.count = integer(user, "count", count, 1)
        if isinstance(holes, str):
            choice(user, "holes", holes, ("rectangle", "mixed"))
        elif not isinstance(holes, masks.MaskFolder):
            holes = _ends(user, "holes", holes)
        self.holes = holes
        self.fixed = isinstance(holes, tuple) if fixed is None else fixed
        count_of_files = len(holes) if isinstance(holes, masks.MaskFolder) else 0
        self._unreadable, self._odd = torch.zeros(2, count_of_files, dtype=torch.bool).share_memory_()
        self.mask(0)

    def __len__(self) -> int:
        return len(self.pictures)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of pictures and masks, see `PictureDataset.set_epoch`."""
        self.pictures.set_epoch(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return (picture, mask) of `index`; raises as `PictureDataset` does."""
        picture, mask = self.pictures[index], self.mask(index)
        if isinstance(self.pictures, RasterDataset):
            mask = mask & picture.isfinite().all(0, keepdim=True)
        return picture, mask

    def mask(self, index: int) -> Tensor:
        """Return the mask of `index` alone, uint8 [1, H, W]."""
        height, width = self.pictures.height, self.pictures.width
        draw = index if self.fixed else self.pictures.epoch * len(self) + index
        if isinstance(self.holes, masks.MaskFolder):
            return self._from_folder(self.holes, draw, height, width)
        if isinstance(self.holes, tuple):
            return masks.irregular(height, width, *self.holes, self.seed, draw)
        make = masks.mixed if self.holes == "mixed" else masks.rectangle
        return make(height, width, self.seed, draw, count=self.count)

    def _from_folder(self, folder: masks.MaskFolder, draw: int, height: int, width: int) -> Tensor:
        """A mask at random or, if it is unreadable, the first readable one after it."""
        start = int(generator(Stream.FOLDER_MASK, self.seed, draw).integers(len(folder)))
        for offset in range(len(folder)):
            candidate = (start + offset) % len(folder)
            if self._unreadable[candidate]:
                continue
            try:
                mask = folder.get(candidate, height, width)
                self._warn_if_odd(folder, candidate, mask)
                return mask
            except _pictures.UnreadablePictureError as error:
                self._unreadable[candidate] = True
                warnings.warn(f"a mask is left out, another takes its place: {error}", stacklevel=2)
        raise ValueError(f"none of {len(folder)} masks can be read, the first is {folder.paths[0]}")

    def _warn_if_odd(self, folder: masks.MaskFolder, index: int, mask: Tensor) -> None:
        """Once for each mask that teaches nothing."""
        if not self._odd[index] and (mask.all() or not mask.any()):
            self._odd[index] = True
            what = "has no holes" if mask.any() else "is all hole"
            warnings.warn(
                f"the mask {folder.paths[index]} {what}: in a picture of a mask {folder.holes} is hole",
                stacklevel=2,
            )


def to_tensor(picture: Image.Image) -> Tensor:
    """Return a ``PIL.Image.Image`` of any mode as RGB float32 [3, H, W] in [0, 1].

    Upright by its EXIF, transparent parts over white, 16 bits scaled to 8, greyscale repeated.
    """
    return _rgb_to_tensor(_pictures.to_rgb(picture))


def _scaled(values: Tensor, size: tuple[int, int], *, mirrored: bool) -> Tensor:
    """[C, H, W] with NaN in gaps, at another size."""
    if values.shape[1:] != size:
        known = values.isfinite()
        parts = torch.stack([torch.where(known, values, 0), known.float()])
        sums, share = F.interpolate(parts, size, mode="bilinear", antialias=True)
        values = torch.where(share > 0.5, sums / share, math.nan)
    return values.flip(2) if mirrored else values


def _rgb_to_tensor(picture: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(picture, np.uint8))
    return values.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format) / 255


def _center(size: tuple[int, int], aspect: float) -> _Box:
    """The largest box of this width / height in the middle of a picture of `size` (width, height)."""
    width, height = size
    w, h = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, min(left + w, width), min(top + h, height)


def _pair(user: str, size: Any) -> tuple[int, int]:
    if not isinstance(size, Sequence):
        side = integer(user, "size", size, 1)
        return side, side
    if len(size) != 2:
        raise ValueError(f"{user}: size must be an int or (height, width), got {size!r}")
    return integer(user, "size[0]", size[0], 1), integer(user, "size[1]", size[1], 1)


def _ends(user: str, name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"{user}: {name} must be a pair of numbers (low, high), got {value!r}")
    return value[0], value[1]
