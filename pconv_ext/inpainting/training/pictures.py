"""The data sets of a training, and the order in which their pictures are taken."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import masks
from .._arguments import named
from .._random import Stream, generator
from .._ranges import ranges_of
from ..data import (
    DATASETS,
    RASTERS,
    InpaintingDataset,
    PictureCollection,
    PictureDataset,
    RasterDataset,
    folder,
    has_split,
    rasters,
)
from .config import TrainConfig
from .signals import ignore_signals

_HELD_OUT = 10  # every so many pictures one is validated on, where nothing else says which
_LOOKED_AT = 200  # rasters, at most, for their ranges
_IRREGULAR = (masks.BINS[0][0], masks.BINS[-1][1])


def datasets(config: TrainConfig) -> tuple[InpaintingDataset, InpaintingDataset]:
    """The data sets to train on and to validate on.

    Validation has the centres of its pictures, or windows, and one mask for each, the same in every epoch.

    Raises:
        OSError, ValueError: a folder that is not there or has no readable pictures.
        ImportError: Pillow, torchvision or what it reads a data set with is missing.
    """
    train, val = _collections(config)
    holes: str | tuple[float, float] | masks.MaskFolder
    if config.masks is not None:
        holes = masks.MaskFolder(config.masks, holes="white" if config.invert_mask else "black")
    else:
        holes = _IRREGULAR if config.holes == "irregular" else config.holes
    made = []
    val_crop = "window" if config.crop == "window" else "center"
    for collection, crop, fixed in ((train, config.crop, False), (val, val_crop, True)):
        options: dict[str, Any] = {"crop": crop, "flip": config.flip and not fixed, "seed": config.seed}
        if config.dataset == RASTERS:
            pictures: PictureDataset = RasterDataset(collection, config.size, config.ranges, **options)
        else:
            pictures = PictureDataset(collection, config.size, **options)
        # Another seed, or validation would have the masks of the first epoch.
        seed = config.seed + 1 if fixed else config.seed
        made.append(InpaintingDataset(pictures, holes, fixed=fixed, seed=seed, count=config.rectangles))
    return made[0], made[1]


def with_ranges(config: TrainConfig) -> TrainConfig:
    """The configuration with the ranges of the rasters to train on, where it has none: of some of them.

    Raises:
        OSError, ValueError, ImportError: as `datasets`.
    """
    if config.dataset != RASTERS or config.ranges is not None:
        return config
    train = _collections(config)[0]
    some = range(0, len(train), math.ceil(len(train) / _LOOKED_AT))
    return replace(config, ranges=ranges_of("train", len(some), map(train.load, some)))


def identity(names: Sequence[str], root: str) -> dict[str, Any]:
    """What tells pictures from others: how many, and a checksum of their names below `root` and sizes."""
    sizes, checksum = _file_sizes(names), hashlib.sha256()
    for name in names:
        below = os.fsencode(os.path.relpath(name, root))
        checksum.update(f"{below!r} {sizes.get(name, 0)}\n".encode())
    return {"count": len(names), "checksum": checksum.hexdigest()}


def identities(config: TrainConfig, train: InpaintingDataset, val: InpaintingDataset) -> dict[str, Any]:
    """`identity` of all that a training reads: the pictures to train and to validate on, and of masks."""
    masks_ = train.holes.paths if isinstance(train.holes, masks.MaskFolder) else ()
    return {
        "train": identity(_names(train), config.data),
        "val": identity(_names(val), config.val or config.data),
        "masks": identity([*map(str, masks_)], config.masks or ""),
    }


def warn_of_common(train: InpaintingDataset, val: InpaintingDataset) -> None:
    """A UserWarning where pictures to validate on are trained on too: files of the same content."""
    trained, validated = (_file_sizes(_names(pairs)) for pairs in (train, val))
    sizes = {*trained.values()} & {*validated.values()}
    contents = {_content(name) for name, size in trained.items() if size in sizes} - {None}
    common = sorted(name for name, size in validated.items() if size in sizes and _content(name) in contents)
    if common:
        warnings.warn(
            f"{len(common)} of {len(val)} pictures to validate on are trained on too, the first is "
            f"{common[0]}: the losses of validation will be too good",
            stacklevel=2,
        )


def _names(pairs: InpaintingDataset) -> list[str]:
    collection = pairs.pictures.collection
    return [collection.name(index) for index in range(len(collection))]


def _file_sizes(names: Sequence[str]) -> dict[str, int]:
    """By name, of the pictures that are files of their own."""
    return {name: os.path.getsize(name) for name in names if os.path.isfile(name)}


def _content(file: str) -> bytes | None:
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest()
    except OSError:  # whoever needs the picture tells of it
        return None


class Validation(Dataset[tuple[Tensor, Tensor, bool]]):
    """Pairs of picture and mask, and whether the picture is its own: no stand-in is to be measured."""

    def __init__(self, pairs: InpaintingDataset) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, bool]:
        image, mask = self.pairs[index]
        return image, mask, not self.pairs.pictures.is_stand_in(index)


def _collections(config: TrainConfig) -> tuple[PictureCollection, PictureCollection]:
    whole: Callable[[str], PictureCollection] = folder
    if config.dataset == RASTERS:
        whole = partial(rasters, channels=config.channels, variables=config.variables)
    elif config.dataset != "folder" or (config.val is None and has_split(config.data)):
        load, splits = DATASETS[config.dataset]
        val = load(config.data, splits[1]) if config.val is None else folder(config.val)
        return load(config.data, splits[0]), val
    train = whole(config.data)
    if config.val is not None:
        val = whole(config.val)
        return _without(train, val, config), val
    if len(train) < 3:
        raise ValueError(
            f"training needs at least 3 pictures, one of them to validate on, {config.data} has {len(train)}"
        )
    held_out = range(0, len(train), _HELD_OUT)
    rest = [i for i in range(len(train)) if i not in held_out]
    return _Part(train, rest), _Part(train, held_out)


def _without(train: PictureCollection, val: PictureCollection, config: TrainConfig) -> PictureCollection:
    """`train` but for the pictures of `val`, whose folder may lie in its own."""
    held_out = {os.path.realpath(val.name(i)) for i in range(len(val))}
    rest = [i for i in range(len(train)) if os.path.realpath(train.name(i)) not in held_out]
    if not rest:
        raise ValueError(
            f"train: all pictures of {config.data} are those of {config.val}, to validate on; none is left "
            "to train on"
        )
    return _Part(train, rest)


class _Part:
    """Some pictures of a collection."""

    def __init__(self, collection: PictureCollection, indices: Sequence[int]) -> None:
        self.collection = collection
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.collection.name(self.indices[index])

    def load(self, index: int) -> Any:
        return self.collection.load(self.indices[index])


class Batches:
    """The batches of one epoch for one of `processes`: a batch sampler for ``DataLoader``.

    The order depends on seed and epoch alone. A batch is divided evenly, so together the processes take the
    batches that one alone would; what does not divide of the last one is left out, and a last batch of which
    a process would have a single picture, because batch normalisation may not train on one.

    Attributes:
        epoch: whose order it is.
        batch_size: of that epoch.
        start: how many batches of the next iteration to pass over; set back to 0 by it.
    """

    def __init__(self, length: int, batch_size: int, seed: int, processes: int = 1, rank: int = 0) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.processes, self.rank = processes, rank
        self.epoch = 0
        self.start = 0
        self.check(batch_size)

    def check(self, batch_size: int) -> None:
        """ValueError unless batches of this size can be divided among the processes, and there is one."""
        if batch_size % self.processes:
            raise ValueError(
                f"{named('batch_size')} must be a multiple of the number of processes, got {batch_size} for "
                f"{self.processes}"
            )
        if self.count(batch_size) == 0:
            raise ValueError(
                f"{self.length} pictures make no batch of at least 2 for each of {self.processes} processes"
            )

    def count(self, batch_size: int) -> int:
        """How many batches of this size an epoch has."""
        full, last = divmod(self.length, batch_size)
        return full + (last // self.processes > 1)

    def __len__(self) -> int:
        return self.count(self.batch_size)

    def pictures(self, steps: int) -> int:
        """How many pictures the first so many batches have, those of all processes together."""
        taken = min(steps * self.batch_size, self.length)
        return taken - taken % self.batch_size % self.processes

    def __iter__(self) -> Iterator[list[int]]:
        order = generator(Stream.ORDER, self.seed, self.epoch).permutation(self.length)
        first, self.start = self.start, 0
        for step in range(first, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            share = len(batch) // self.processes
            yield batch[self.rank * share : (self.rank + 1) * share].tolist()


def loader(dataset: Dataset[Any], batches: Any, workers: int, device: torch.device) -> DataLoader[Any]:
    """What reads a data set in so many processes besides, or in this one."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or an iteration would take from the default one
    )
