"""What decides what a training computes: stored in its checkpoints, compared when it is resumed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeAlias

from .._arguments import about, choice, integer, named, number
from .._random import SEED_LIMIT
from .._ranges import Ranges, checked_ranges
from ..data import DATASETS, RASTERS
from ..losses import WEIGHTS, merged_weights, needs_vgg16
from .phases import Phase, Phases, as_json, phase_of
from .phases import check as _phases
from .setting import Setting, documented, fields

KernelSizes: TypeAlias = Sequence[int] | Sequence[Sequence[int]]

_DATASETS = (*DATASETS, RASTERS)
CROPS = ("random", "center", "window", "none")
HOLES = ("rectangle", "irregular", "mixed")
SCHEDULES = ("plateau", "cosine")
PRECISIONS = ("auto", "float32", "bfloat16")

# By the headings under which commands list them.
_pictures, _network, _training = (
    partial(Setting, panel=panel) for panel in ("Pictures and masks", "Network", "Training")
)


def _names(values: Iterable[str]) -> str:
    return ", ".join(values)


def _whole(least: int, below: int | None = None) -> Callable[[str, str, Any], object]:
    return partial(integer, least=least, below=below)


def _real(fits: Callable[[float], bool], expected: str) -> Callable[[str, str, Any], object]:
    return partial(number, fits=fits, expected=expected)


def _positive(user: str, name: str, value: Any) -> None:
    if value is not None:
        number(user, name, value, lambda x: x > 0, "above 0")


def _count(user: str, name: str, value: Any) -> None:
    if value is not None:
        integer(user, name, value, 1)


def _one_of(values: Iterable[str]) -> Callable[[str, str, Any], object]:
    return partial(choice, choices=tuple(values))


def _loss_weights(user: str, name: str, value: Any) -> object:
    return merged_weights(user, value)


@documented
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training, with the paper's settings (section 4.2) as defaults.

    The paper leaves open the weight decay, the patience and factor of the plateau schedule and how pictures
    are cut to 256x256; the defaults of those are ours. Off by default, `flip`, `residual`, `per_hole`,
    `stop_after`, `schedule`, `warmup`, `clip`, `ema`, `phases` and `start` are ours, as mixed holes are and,
    in `weights`, what ends in "_l1".

    Raises:
        TypeError, ValueError: an argument of another type or out of its range.
    """

    data: Annotated[str, _pictures("Folder of pictures, or of a data set.", path=True, replaceable=True)]
    dataset: Annotated[str, _pictures(f"What {{data}} holds: {_names(_DATASETS)}.", _one_of(_DATASETS))] = (
        "folder"
    )
    channels: Annotated[int, _pictures("Channels of the rasters; pictures have 3.", _whole(1))] = 3
    variables: Annotated[
        Sequence[str],
        _pictures("Of NetCDF files and .npz, those that hold the channels.", default=""),
    ] = ()
    ranges: Annotated[
        Ranges | None,
        _pictures(
            "Low and high of each channel of the rasters, which become 0 and 1; by default the range of all "
            "values but the outermost 0.1 % on either side."
        ),
    ] = None
    val: Annotated[
        str | None,
        _pictures(
            "Folder of pictures to validate on. Without it Helen's own lists or the data set's second split, "
            "or every tenth picture.",
            path=True,
            replaceable=True,
        ),
    ] = None
    size: Annotated[int, _pictures("Height and width of the pictures, in pixels.", _whole(1))] = 256
    crop: Annotated[str, _pictures(f"How pictures are cut: {_names(CROPS)}.", _one_of(CROPS))] = "random"
    flip: Annotated[bool, _pictures("Mirror every other picture, others in every epoch.")] = False
    holes: Annotated[
        str,
        _pictures(
            "Masks that are made: rectangle, irregular strokes, or mixed: both, small holes more often.",
            _one_of(HOLES),
        ),
    ] = "rectangle"
    rectangles: Annotated[int, _pictures("Rectangles in each mask.", _whole(1))] = 1
    masks: Annotated[
        str | None,
        _pictures("Folder of mask pictures, dark = hole, in place of {holes}.", path=True, replaceable=True),
    ] = None
    invert_mask: Annotated[bool, _pictures("In the pictures of {masks} light = hole.")] = False

    width: Annotated[int, _network("Channels of the first stage.", _whole(1))] = 64
    msfef_stages: Annotated[int, _network("Encoder stages that are MSFEF blocks.")] = 4
    kernel_sizes: Annotated[KernelSizes, _network("Of all MSFEF blocks, or of each.")] = (3, 5, 7)
    depth: Annotated[int, _network("Encoder stages; each halves the size.")] = 8

    residual: Annotated[bool, _network("Let the network correct a smooth filling, not paint anew.")] = False

    weights: Annotated[
        Mapping[str, float],
        _training(
            "Weights of loss terms by name.",
            _loss_weights,
            default=" ".join(f"{name}={value:g}" for name, value in WEIGHTS.items()),
        ),
    ] = dataclasses.field(default_factory=dict)
    per_hole: Annotated[
        bool, _training("Divide missing and missing_l1 by the pixels of holes, not by all.")
    ] = False
    vgg16: Annotated[
        str | None,
        _training(
            "File of VGG-16's weights, .pth or .safetensors; without it torchvision downloads them.",
            path=True,
            replaceable=True,
        ),
    ] = None
    batch_size: Annotated[int, _training("Pictures a step, over all processes.", _whole(1))] = 32
    epochs: Annotated[int, _training("How often every picture is seen.", _whole(1), replaceable=True)] = 120
    stop_after: Annotated[
        int | None,
        _training(
            "End before {epochs}, after so many of the last phase without a validation loss better by 1 %.",
            _count,
            replaceable=True,
        ),
    ] = None
    min_epochs: Annotated[int, _training("But not before so many.", _whole(0), replaceable=True)] = 0
    lr: Annotated[
        float, _training("Learning rate of Adam.", _real(lambda x: 0 < x <= 1e30, "above 0 and at most 1e30"))
    ] = 0.003
    weight_decay: Annotated[
        float, _training("Weight decay of Adam.", _real(lambda x: x >= 0, "at least 0"))
    ] = 1e-5
    schedule: Annotated[
        str,
        _training(
            f"{_names(SCHEDULES)}: lr shrinks when the validation loss does not, or by step along half a "
            "cosine, to 0 at the end of {epochs}.",
            _one_of(SCHEDULES),
        ),
    ] = "plateau"
    warmup: Annotated[int, _training("Steps in which lr rises to its value, with cosine.", _whole(0))] = 0
    patience: Annotated[
        int, _training("Epochs without a better validation loss before lr shrinks.", _whole(0))
    ] = 5
    factor: Annotated[
        float, _training("What lr is multiplied by then.", _real(lambda x: 0 < x < 1, "between 0 and 1"))
    ] = 0.5
    clip: Annotated[
        float | None,
        _training("Largest norm of all gradients together; larger ones are scaled to it.", _positive),
    ] = None
    ema: Annotated[
        float,
        _training(
            "Decay of a running mean of the weights, which is then what is validated and saved; 0 = none.",
            _real(lambda x: 0 <= x < 1, "at least 0 and below 1"),
        ),
    ] = 0.0
    phases: Annotated[
        Phases,
        _training(
            "From an epoch on, another {size}, {batch_size} or {weights}; several sizes take turns, an epoch "
            "each.",
            _phases,
            default="",
        ),
    ] = ()
    start: Annotated[
        str | None,
        _training("A .safetensors or folder with the network to begin with.", path=True, replaceable=True),
    ] = None
    precision: Annotated[
        str, _training(f"{_names(PRECISIONS)}; auto is bfloat16 on GPUs that have it.", _one_of(PRECISIONS))
    ] = "auto"
    save_every: Annotated[
        int,
        _training("Steps between checkpoints; one follows each epoch too.", _whole(1), replaceable=True),
    ] = 1000
    sync_batchnorm: Annotated[
        bool, _training("Batch statistics over all processes (GPUs), not each its own.")
    ] = False
    seed: Annotated[int, _training("Of everything random.", _whole(0, SEED_LIMIT - 1))] = 0

    def __post_init__(self) -> None:
        for name, field in fields(TrainConfig).items():
            value = getattr(self, name)
            if field.setting.check is not None:
                field.setting.check("TrainConfig", name, value)
            if field.setting.path and value is not None:
                object.__setattr__(self, name, os.fspath(value))  # a string, for JSON
        if self.invert_mask and self.masks is None:
            raise ValueError(
                f"{about('TrainConfig', 'invert_mask')} is about the pictures of {named('masks')}, which is "
                "None"
            )
        for name, schedule in (("warmup", "cosine"), ("patience", "plateau"), ("factor", "plateau")):
            if getattr(self, name) != getattr(TrainConfig, name) and self.schedule != schedule:
                raise ValueError(
                    f"{about('TrainConfig', name)} is of the {named('schedule')} {schedule}, which is "
                    f"{self.schedule}"
                )
        rasters = self.dataset == RASTERS
        for name in ("channels", "variables", "ranges"):
            if not rasters and getattr(self, name) != getattr(TrainConfig, name):
                raise ValueError(
                    f"{about('TrainConfig', name)} is of rasters, {named('dataset')} is {self.dataset}"
                )
        object.__setattr__(self, "variables", tuple(self.variables))
        object.__setattr__(self, "ranges", checked_ranges("TrainConfig", self.ranges, self.channels))
        begins = [0, *(phase["epoch"] - 1 for phase in self.phases)]
        if self.channels != 3 and any(needs_vgg16(self.phase(epoch).weights) for epoch in begins):
            raise ValueError(
                f"{about('TrainConfig', 'weights')} of perceptual and style, which are of pictures with 3 "
                f"channels, must be 0 for {self.channels} {named('channels')}"
            )
        if self.min_epochs and self.stop_after is None:
            raise ValueError(
                f"{about('TrainConfig', 'min_epochs')} is about {named('stop_after')}, which is None"
            )

    @property
    def net(self) -> dict[str, Any]:
        """The arguments of `pconv_ext.InpaintingNet`."""
        layers = ("width", "msfef_stages", "kernel_sizes", "depth", "residual", "channels")
        return {name: getattr(self, name) for name in (*layers, "size", "ranges")}

    def phase(self, epoch: int) -> Phase:
        """What an epoch is trained with, the first being 0."""
        return phase_of(epoch, self.size, self.batch_size, self.weights, self.phases)

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON holds them."""
        values = dataclasses.asdict(self)
        stages: Any = self.kernel_sizes
        values["kernel_sizes"] = [list(sizes) if hasattr(sizes, "__len__") else sizes for sizes in stages]
        values["weights"] = merged_weights("TrainConfig", self.weights)
        values["phases"] = as_json(self.phases)
        return values


def resumed(stored: Mapping[str, Any], given: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a stored training, with what was `given` now where that may differ.

    Raises:
        ValueError: something that would make it another training differs.
    """
    replaceable = [name for name, field in fields(TrainConfig).items() if field.setting.replaceable]
    began = TrainConfig(**stored).to_dict()
    asked = TrainConfig(**{**stored, **given}).to_dict()
    for name in given:
        if asked[name] != began[name] and name not in replaceable:
            raise ValueError(
                f"a training is resumed with the settings it was begun with: {named(name)} was "
                f"{began[name]}, got {asked[name]}; only {', '.join(map(named, replaceable))} may differ"
            )
    return TrainConfig(**asked)
