"""The options about LPIPS, of `evaluate` and `ablate`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from ..evaluation import load_lpips

Lpips = Annotated[
    Path | None,
    typer.Option(
        help="File of LPIPS weights (.safetensors or .pth: features.N.*, lin0 to lin4); by default "
        "AlexNet is downloaded.",
        show_default=False,
    ),
]
NoLpips = Annotated[bool, typer.Option("--no-lpips", help="No LPIPS, and no download.")]


def metric(lpips: Path | None, no_lpips: bool) -> nn.Module | str:
    """LPIPS, or why there is none; a file that is given must do.

    Raises:
        OSError, ValueError, ImportError: the file is missing or no LPIPS; both options are given.
    """
    if lpips and no_lpips:
        raise ValueError("--lpips and --no-lpips exclude each other, got both")
    if no_lpips:
        return "--no-lpips was given"
    try:
        return load_lpips(lpips)
    except (ImportError, OSError) as error:
        if lpips is not None:
            raise
        warnings.warn(f"LPIPS is left out: {error}", stacklevel=2)
        return str(error)
