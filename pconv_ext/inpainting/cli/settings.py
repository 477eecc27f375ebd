"""The options of `train` and `ablate` that `pconv_ext.training.TrainConfig` explains."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..._backends import backends
from ..data import DATASETS
from ..losses import WEIGHTS
from ..training.config import CROPS, HOLES, PRECISIONS, TrainConfig

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


def _option(name: str, help: str, panel: str, default: Any = None) -> Any:
    """An option that is None where it is not given, so that a resumed training keeps its own."""
    shown = _DEFAULTS[name.removeprefix("--").replace("-", "_")] if default is None else default
    if shown is not None and shown is not False:
        help += f" (default: {shown})"
    return typer.Option(name, help=help, rich_help_panel=panel, show_default=False)


def _names(values: Iterable[str]) -> str:
    return ", ".join(values)


_PICTURES, _NETWORK, _TRAINING = "Pictures and masks", "Network", "Training"

Dataset = Annotated[str | None, _option("--dataset", f"What DATA holds: {_names(DATASETS)}.", _PICTURES)]
Val = Annotated[
    str | None,
    _option(
        "--val",
        "Folder of pictures to validate on. Without it Helen's own lists or the data set's second split, or "
        "every tenth picture.",
        _PICTURES,
    ),
]
Size = Annotated[int | None, _option("--size", "Height and width of the pictures, in pixels.", _PICTURES)]
Crop = Annotated[str | None, _option("--crop", f"How pictures are cut: {_names(CROPS)}.", _PICTURES)]
Holes = Annotated[str | None, _option("--holes", f"Masks that are made: {_names(HOLES)} strokes.", _PICTURES)]
Rectangles = Annotated[int | None, _option("--rectangles", "Rectangles in each mask.", _PICTURES)]
Masks = Annotated[
    str | None, _option("--masks", "Folder of mask pictures, dark = hole, in place of --holes.", _PICTURES)
]
InvertMask = Annotated[
    bool | None, _option("--invert-mask", "In the pictures of --masks light = hole.", _PICTURES)
]
Width = Annotated[int | None, _option("--width", "Channels of the first stage.", _NETWORK)]
MsfefStages = Annotated[
    int | None, _option("--msfef-stages", "Encoder stages that are MSFEF blocks.", _NETWORK)
]
KernelSizes = Annotated[
    str | None,
    _option(
        "--kernel-sizes",
        "Of all MSFEF blocks, or of each: 3,5,7,9/3,5,7/3,5,7/3,5.",
        _NETWORK,
        "3,5,7",
    ),
]
Depth = Annotated[int | None, _option("--depth", "Encoder stages; each halves the size.", _NETWORK)]
Weights = Annotated[
    list[str] | None,
    _option(
        "--weights",
        "Weight of a loss term, such as style=0; may be repeated.",
        _TRAINING,
        " ".join(f"{name}={value:g}" for name, value in WEIGHTS.items()),
    ),
]
Vgg16 = Annotated[
    str | None,
    _option(
        "--vgg16",
        "File of VGG-16's weights, .pth or .safetensors; without it torchvision downloads them.",
        _TRAINING,
    ),
]
BatchSize = Annotated[int | None, _option("--batch-size", "Pictures a step, over all processes.", _TRAINING)]
Epochs = Annotated[int | None, _option("--epochs", "How often every picture is seen.", _TRAINING)]
Lr = Annotated[float | None, _option("--lr", "Learning rate of Adam.", _TRAINING)]
WeightDecay = Annotated[float | None, _option("--weight-decay", "Weight decay of Adam.", _TRAINING)]
Patience = Annotated[
    int | None,
    _option("--patience", "Epochs without a better validation loss before lr shrinks.", _TRAINING),
]
Factor = Annotated[float | None, _option("--factor", "What lr is multiplied by then.", _TRAINING)]
Precision = Annotated[
    str | None,
    _option("--precision", f"{_names(PRECISIONS)}; auto is bfloat16 on GPUs that have it.", _TRAINING),
]
SaveEvery = Annotated[
    int | None, _option("--save-every", "Steps between checkpoints; one follows each epoch too.", _TRAINING)
]
SyncBatchnorm = Annotated[
    bool | None,
    _option("--sync-batchnorm", "Batch statistics over all processes (GPUs), not each its own.", _TRAINING),
]
Seed = Annotated[int | None, _option("--seed", "Of everything random.", _TRAINING)]

Data = Annotated[
    Path | None,
    typer.Argument(metavar="DATA", help="Folder of pictures, or of a data set.", show_default=False),
]
RequiredData = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of pictures, or of a data set.")]
Device = Annotated[
    str | None,
    typer.Option(help="Such as cpu or cuda:1; by default a GPU where there is one.", show_default=False),
]
Workers = Annotated[int, typer.Option(help="Processes that load pictures.", min=0)]
Backend = Annotated[str, typer.Option(help=f"Of the partial convolutions: auto, {_names(backends())}.")]


def collect(context: typer.Context) -> dict[str, Any]:
    """The settings given on the command line, by the names of `TrainConfig`.

    Raises:
        ValueError: a value that cannot be read.
    """
    given = {
        name: value
        for name, value in context.params.items()
        if name in _DEFAULTS and value not in (None, [], ())
    }
    if "data" in given:
        given["data"] = str(given["data"])
    if "kernel_sizes" in given:
        given["kernel_sizes"] = _kernel_sizes(given["kernel_sizes"])
    if "weights" in given:
        given["weights"] = dict(map(_weight, given["weights"]))
    return given


def _kernel_sizes(text: str) -> list[Any]:
    try:
        stages = [[int(size) for size in stage.split(",")] for stage in text.split("/")]
    except ValueError:
        raise ValueError(f"--kernel-sizes must look like 3,5,7 or 3,5,7/3,5, got {text!r}") from None
    return stages if "/" in text else stages[0]


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"--weights must look like style=120, got {text!r}") from None
