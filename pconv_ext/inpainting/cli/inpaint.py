"""``pconv-ext inpaint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from ..batch import inpaint_files
from ..inpainter import LARGE, Inpainter
from .options import Device


def inpaint(
    image: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.")],
    mask: Annotated[
        Path,
        typer.Argument(
            help="Its mask: white (1) = valid, black (0) = hole. For a folder, one mask for all, or a folder "
            "with masks named as the pictures, but for the extension."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write, in the format of its extension; for a folder, a folder of PNGs.",
        ),
    ],
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", "-c", help="A .safetensors, or the folder of a training run.")
    ],
    invert_mask: Annotated[
        bool, typer.Option("--invert-mask", help="Black (0) = valid and white (1) = hole.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="The network's output everywhere, not only in holes.")
    ] = False,
    large: Annotated[
        str,
        typer.Option(
            help=f"Pictures larger than those of training: {', '.join(LARGE)}; holes cut out with "
            "their surroundings, everything made smaller, or nothing."
        ),
    ] = "crop",
    device: Device = None,
) -> None:
    """Fill the holes of a picture, or of all pictures in a folder.

    In a mask white is valid and black a hole, unless --invert-mask is given. Valid pixels are kept.
    """
    inpainter = Inpainter(checkpoint, device)
    console = Console(stderr=True)
    folder = image.is_dir()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("inpainting", total=None)
        written = inpaint_files(
            inpainter,
            image,
            mask,
            output,
            invert_mask=invert_mask,
            raw=raw,
            large=large,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for file in written:
        print(file)
    if folder:
        print(f"{len(written)} pictures written to {output}")
