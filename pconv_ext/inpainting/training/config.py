"""What decides what a training computes: stored in its checkpoints, compared when it is resumed."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from .._arguments import choice, integer
from .._random import SEED_LIMIT
from ..data import DATASETS
from ..losses import merged_weights

CROPS = ("random", "center", "none")
HOLES = ("rectangle", "irregular")
PRECISIONS = ("auto", "float32", "bfloat16")

#: What may differ when a training is resumed: where the same things lie now, and how long to go on.
REPLACEABLE = frozenset({"data", "val", "masks", "vgg16", "epochs", "save_every"})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training, with the paper's settings (section 4.2) as defaults.

    The paper leaves open the weight decay, the patience and factor of the plateau schedule and how pictures
    are cut to 256x256; the defaults of those are ours.

    Attributes:
        data: folder of the pictures, or of the data set.
        dataset: "folder"; "stanford-cars" or "lsun-church" read by torchvision's classes.
        val: folder of pictures to validate on; None takes Helen's own lists where `data` has them, the data
            set's second split, or else every tenth picture, in the order of their paths.
        size: pictures are brought to size x size pixels.
        crop: "random", "center" or "none", see `pconv_ext.data.PictureDataset`; validation crops the centre.
        holes: "rectangle" (the paper's) or "irregular" strokes that cover 1 % to 50 %.
        rectangles: how many of them a mask has.
        masks: folder of mask pictures, in place of `holes`; invert_mask: their holes are white.
        width, msfef_stages, kernel_sizes, depth: see `pconv_ext.InpaintingNet`.
        weights: of the loss terms, those that differ from `pconv_ext.losses.WEIGHTS`.
        vgg16: file of VGG-16's weights; None downloads them.
        batch_size: pictures a step, over all processes.
        epochs: how often every picture is seen.
        lr, weight_decay: of Adam.
        patience, factor: epochs without a better validation loss after which lr is multiplied by factor.
        precision: "float32", "bfloat16" (autocast), or "auto": bfloat16 on a GPU that has it.
        save_every: steps between checkpoints, beside one at the end of each epoch.
        sync_batchnorm: statistics of batch normalisation over all processes' pictures (GPUs only) instead of
            each process's own.
        seed: of everything random.

    Raises:
        TypeError, ValueError: an argument of another type or out of its range.
    """

    data: str
    dataset: str = "folder"
    val: str | None = None
    size: int = 256
    crop: str = "random"
    holes: str = "rectangle"
    rectangles: int = 1
    masks: str | None = None
    invert_mask: bool = False
    width: int = 64
    msfef_stages: int = 4
    kernel_sizes: Any = (3, 5, 7)
    depth: int = 8
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    vgg16: str | None = None
    batch_size: int = 32
    epochs: int = 120
    lr: float = 0.003
    weight_decay: float = 1e-5
    patience: int = 5
    factor: float = 0.5
    precision: str = "auto"
    save_every: int = 1000
    sync_batchnorm: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (
            ("dataset", tuple(DATASETS)),
            ("crop", CROPS),
            ("holes", HOLES),
            ("precision", PRECISIONS),
        ):
            choice("TrainConfig", name, getattr(self, name), values)
        for name in ("size", "rectangles", "width", "batch_size", "epochs", "save_every"):
            integer("TrainConfig", name, getattr(self, name), 1)
        integer("TrainConfig", "patience", self.patience, 0)
        integer("TrainConfig", "seed", self.seed, 0, SEED_LIMIT - 1)
        for name, fits in (
            ("lr", lambda x: x > 0),
            ("weight_decay", lambda x: x >= 0),
            ("factor", lambda x: 0 < x < 1),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and fits(value)):
                wanted = {"lr": "above 0", "weight_decay": "at least 0", "factor": "between 0 and 1"}[name]
                raise ValueError(f"TrainConfig: {name} must be {wanted}, got {value}")
        merged_weights("TrainConfig", self.weights)
        if self.invert_mask and self.masks is None:
            raise ValueError("TrainConfig: invert_mask is about the pictures of masks, which is None")
        for name in ("data", "val", "masks", "vgg16"):  # strings, for JSON
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.fspath(getattr(self, name)))

    @property
    def net(self) -> dict[str, Any]:
        """The arguments of `pconv_ext.InpaintingNet`."""
        return {name: getattr(self, name) for name in ("width", "msfef_stages", "kernel_sizes", "depth")}

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON holds them."""
        values = dataclasses.asdict(self)
        values["kernel_sizes"] = [
            list(sizes) if hasattr(sizes, "__len__") else sizes for sizes in self.kernel_sizes
        ]
        values["weights"] = merged_weights("TrainConfig", self.weights)
        return values


def resumed(stored: Mapping[str, Any], given: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a stored training, with what was `given` now where that may differ.

    Raises:
        ValueError: something that would make it another training differs.
    """
    asked = TrainConfig(**{**stored, **given}).to_dict()
    for name in given.keys() - REPLACEABLE:
        if asked[name] != stored[name]:
            raise ValueError(
                f"a training is resumed with the settings it was begun with: {name} was {stored[name]}, "
                f"got {asked[name]}; only {', '.join(sorted(REPLACEABLE))} may differ"
            )
    return TrainConfig(**asked)
