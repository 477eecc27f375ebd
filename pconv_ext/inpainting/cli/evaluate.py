"""``pconv-ext evaluate``."""

from __future__ import annotations

import dataclasses
import io
import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from .. import tables
from .._arguments import about, choice, integer, printable
from .._device import find_device
from .._files import check_folder, write_atomically
from .._random import SEED_LIMIT
from ..checkpoint import load_net
from ..data import (
    DATASETS,
    RASTERS,
    PictureCollection,
    PictureDataset,
    RasterDataset,
    folder,
    has_split,
    rasters,
)
from ..evaluation import Holes
from ..evaluation import evaluate as measure
from ..figures import grid, triptych
from ..masks import BINS, MaskFolder
from ..opponents import OPPONENTS, check_installed, compete
from .metric import Lpips, NoLpips, metric
from .options import Device, Workers, listed

_MADE: tuple[Holes, ...] = ("rectangle", *BINS)  # where masks are made
_CROPS = ("center", "window", "none")  # the others are random
_NETWORK = "network"  # among opponents


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .safetensors, the folder of a training, or pconv-photos.")
    ],
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for metrics.json, .csv and .md, and figures/*.png."),
    ],
    dataset: Annotated[
        str, typer.Option(help=f"What the folder holds: {', '.join((*DATASETS, RASTERS))}.")
    ] = "folder",
    variables: Annotated[
        str | None,
        typer.Option(
            help="Of NetCDF files and .npz, those that hold the channels, such as u,v.", show_default=False
        ),
    ] = None,
    crop: Annotated[
        str, typer.Option(help=f"How pictures are cut, see train: {', '.join(_CROPS)}.")
    ] = "center",
    split: Annotated[
        str | None,
        typer.Option(
            help="all, or train or test as the folder's trainnames.txt and testnames.txt say; by default "
            "test where there are these lists, else all. Of a data set: train, test (Cars) or val (LSUN).",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Height and width of the pictures, in pixels; by default as in training.", show_default=False
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder of mask pictures, dark = hole; by default every picture gets a rectangle, as in the "
            "paper's training, and an irregular mask in each bin of hole ratios.",
            show_default=False,
        ),
    ] = None,
    invert_mask: Annotated[
        bool, typer.Option("--invert-mask", help="In the pictures of --masks light = hole.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="What fills holes without a network, measured beside it: any of "
            f"{','.join(OPPONENTS)}, commas between them. OpenCV's have the better of two radii, row by row.",
            show_default=False,
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Measure the network's output, not the composite with the truth.")
    ] = False,
    lpips: Lpips = None,
    no_lpips: NoLpips = False,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 16,
    workers: Workers = 2,
    device: Device = None,
    limit: Annotated[
        int | None, typer.Option(help="Take the first so many pictures.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    figures: Annotated[int, typer.Option(help="Rows (truth, masked, output) in the figure of a bin.")] = 2,
) -> None:
    """Measure a network: L2, SSIM, PSNR, LPIPS and PSNR in holes, for rectangles and bins of hole ratios."""
    for name, value, least, below in (
        ("batch_size", batch_size, 1, None),
        ("seed", seed, 0, SEED_LIMIT),
        ("figures", figures, 0, None),
        ("limit", 1 if limit is None else limit, 1, None),
    ):
        integer("evaluate", name, value, least, below)
    choice("evaluate", "crop", crop, _CROPS)
    if dataset != RASTERS and variables is not None:
        raise ValueError(f"{about('evaluate', 'variables')} is of rasters, --dataset is {dataset}")
    if invert_mask and masks is None:
        raise ValueError(
            f"{about('evaluate', 'invert_mask')} is about the pictures of --masks, which is not given"
        )
    names = listed(against)
    for name in names:
        choice("evaluate", "against", name, tuple(OPPONENTS))
    check_installed(names)
    check_folder("evaluate", "output", output)
    where = find_device("evaluate", device)
    net = load_net(checkpoint)
    if size is None:
        size = net.config["size"]
    if dataset == RASTERS:
        collection = rasters(pictures, net.config["channels"], listed(variables))
        shown: PictureDataset = RasterDataset(collection, size, net.config["ranges"], crop=crop)
    else:
        shown = PictureDataset(_collection(dataset, pictures, split), size, crop=crop)
    holes = None if masks is None else MaskFolder(masks, holes="white" if invert_mask else "black")
    bins = _MADE if masks is None else BINS
    options: dict[str, Any] = {
        "bins": bins,
        "holes": holes,
        "seed": seed,
        "raw": raw,
        "lpips": metric(lpips, no_lpips),
        "workers": workers,
        "device": where,
        "limit": limit,
    }
    rows: dict[tuple[nn.Module, int], list[list[Tensor]]] = defaultdict(list)  # by what filled them, and bin

    def visit(filler: nn.Module, place: int, truth: Tensor, mask: Tensor, result: Tensor) -> None:
        if len(rows[filler, place]) < figures:
            rows[filler, place].append([picture.cpu() for picture in triptych(truth, mask, result)])

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        report = measure(
            net,
            shown,
            batch_size=batch_size,
            progress=_progress(bar, _NETWORK),
            visit=partial(visit, net),
            **options,
        )
        outcomes = {
            name: compete(name, shown, progress=_progress(bar, name), visit=visit, **options)
            for name in names
        }
    reports = {_NETWORK: report, **{name: outcome.report for name, outcome in outcomes.items()}}
    described = {name: {"folder": _text(pictures)} for name in reports}
    described[_NETWORK] = {"checkpoint": _text(checkpoint), "folder": _text(pictures)}
    reports = {
        name: dataclasses.replace(one, settings=described[name] | one.settings)
        for name, one in reports.items()
    }
    (output / "figures" if figures else output).mkdir(parents=True, exist_ok=True)
    for one in _MADE:
        (output / "figures" / _figure(one)).unlink(missing_ok=True)  # of an earlier evaluation
    for place, one in enumerate(bins):
        some = rows[net, place]
        for outcome in outcomes.values():
            filled = rows[outcome.forms[place], place]
            some = [[*row, result] for row, (_, _, result) in zip(some, filled, strict=True)]
        if some:
            titles = ["truth", "masked", *reports] if names else []
            write_atomically(output / "figures" / _figure(one), _png(some, titles))
    if names:
        tables.write_comparison(reports, output)
        Console().print(tables.comparison_screen(reports))
    else:
        tables.write_report(reports[_NETWORK], output)
        Console().print(tables.report_screen(reports[_NETWORK]))
    print(f"written to {printable(output)}")


def _progress(bar: Progress, name: str) -> Callable[[int, int], None]:
    task = bar.add_task(f"evaluating {name}", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def _figure(holes: Holes) -> str:
    return f"holes-{holes if isinstance(holes, str) else '{:g}-{:g}'.format(*holes)}.png"


def _collection(dataset: str, pictures: Path, split: str | None) -> PictureCollection:
    choice("evaluate", "dataset", dataset, (*DATASETS, RASTERS))
    load, splits = DATASETS[dataset]
    if dataset == "folder":
        if split == "all" or (split is None and not has_split(pictures)):
            return folder(pictures)
        choice("evaluate", "split", split or splits[1], ("all", *splits))
    return load(pictures, split or splits[1])


def _text(path: Path) -> str:
    """As it can be written, also where its name is not in UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _png(rows: list[list[Tensor]], titles: list[str]) -> bytes:
    content = io.BytesIO()
    grid(rows, titles).save(content, "PNG")
    return content.getvalue()
