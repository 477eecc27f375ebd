"""``pconv-ext inpaint``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from .. import _pictures
from .._arguments import printable
from .._files import write_atomically
from .._networks import SHIPPED
from .._picture_files import format_of
from ..batch import Outcome, inpaint_bytes, inpaint_files, inpaint_rasters
from ..inpainter import LARGE, FillOptions, Inpainter
from ..rasters import EXTENSIONS
from .options import Checkpoint, Device, listed

_STREAM = "-"
_INCOMPLETE = 3  # the exit code where something was left out


def inpaint(
    image: Annotated[
        str,
        typer.Argument(
            help="A picture, or a folder of pictures; - = standard input. With a network for rasters, a "
            ".npy, .npz, .nc or .tif, or a folder of those."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="File to write, in the format of its extension, or - for standard output; or a folder.",
        ),
    ],
    mask: Annotated[
        str | None,
        typer.Argument(
            help="Its mask: white (1) = valid, black (0) or transparent = hole; - = standard input. For a "
            "folder, one mask for all, or a folder with masks named as the pictures, but for the extension "
            "or _mask and digits before it. Of rasters, by default all that is NaN is a hole; with a mask, a "
            "picture or .npy, only its holes are filled.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Checkpoint = SHIPPED,
    variables: Annotated[
        str | None,
        typer.Option(
            help="Of NetCDF files and .npz, those that hold the channels, such as u,v.", show_default=False
        ),
    ] = None,
    invert_mask: Annotated[
        bool, typer.Option("--invert-mask", help="Black (0) = valid and white (1) = hole.")
    ] = False,
    threshold: Annotated[
        int,
        typer.Option(help="Values of a mask above it are white, 0 to 255; 254 where edges are soft."),
    ] = 127,
    dilate: Annotated[int, typer.Option(help="Grow holes by so many pixels.")] = 0,
    feather: Annotated[
        int, typer.Option(help="Blend so many pixels deep into holes; valid pixels never change.")
    ] = 0,
    large: Annotated[
        str,
        typer.Option(
            help=f"Pictures larger than those of training: {', '.join(LARGE)}; holes cut out with their "
            "surroundings, everything made smaller, or nothing."
        ),
    ] = "crop",
    raw: Annotated[
        bool, typer.Option("--raw", help="The network's output everywhere, not only in holes.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do again what an output folder has already.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail where a picture of a folder has no mask or cannot be read, and leave none out.",
        ),
    ] = False,
    device: Device = None,
) -> None:
    """Fill the holes of a picture or raster, or of all in a folder.

    In a mask white is valid and black or transparent a hole, unless --invert-mask is given. Valid pixels are
    kept, with the picture's mode, colour profile, EXIF and resolution: bit for bit, but that a JPEG is
    compressed again, with its own tables, by which pixels change a little, and so is an AVIF. Of a raster's
    file only the values that are filled change.

    The exit code is 3 where pictures of a folder were left out.
    """
    options = FillOptions(invert_mask, threshold, dilate, feather, large, raw)
    inpainter = Inpainter(checkpoint, device)
    rasters = inpainter.net.config["ranges"] is not None
    if not rasters and (mask is None or variables is not None):
        raise ValueError(_unlike_pictures(image, mask, checkpoint))
    console = Console(stderr=True)
    if checkpoint == SHIPPED:
        console.print(f"with the network {SHIPPED}, which comes with pconv_ext", highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("inpainting", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        again = {"overwrite": overwrite, "strict": strict}
        if rasters:
            done = inpaint_rasters(
                inpainter,
                image,
                output,
                mask,
                options,
                variables=listed(variables),
                progress=progress,
                **again,
            )
        else:
            assert mask is not None  # as there are no rasters
            if _STREAM in (image, mask, output):
                _stream(inpainter, image, mask, output, options)
                return
            done = inpaint_files(inpainter, image, mask, output, options, progress=progress, **again)
    _tell(done, output, folder=Path(image).is_dir())


def _unlike_pictures(image: str, mask: str | None, checkpoint: str) -> str:
    """What is wrong, with a network for pictures."""
    if Path(image).suffix.lower() in EXTENSIONS - _pictures.EXTENSIONS:
        return (
            f"inpaint: {image} is a raster, the network {checkpoint} is for pictures: train one with "
            "--dataset rasters"
        )
    if mask is None:
        return "inpaint: MASK must be given for a picture, whose holes it tells"
    return f"inpaint: --variables is of rasters, the network {checkpoint} is for pictures"


def _tell(done: Outcome, output: str, *, folder: bool) -> None:
    for file in done.written:
        print(printable(file))
    if folder:
        there = f", {len(done.there)} were there (--overwrite does them again)" if done.there else ""
        print(f"{len(done.written)} written to {printable(output)}{there}")
    if done.left_out:
        raise typer.Exit(_INCOMPLETE)


def _stream(inpainter: Inpainter, image: str, mask: str, output: str, options: FillOptions) -> None:
    if image == mask:
        raise ValueError("inpaint: IMAGE and MASK cannot both be standard input")
    first, second = (
        sys.stdin.buffer.read() if one == _STREAM else Path(one).read_bytes() for one in (image, mask)
    )
    kind = None if output == _STREAM else format_of(Path(output))
    filled = inpaint_bytes(inpainter, first, second, options, kind=kind, name=image)
    if output == _STREAM:
        sys.stdout.buffer.write(filled)
    else:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, filled)
