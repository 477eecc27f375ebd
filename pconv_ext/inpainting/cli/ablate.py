"""`pconv-ext ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import tables
from .._arguments import printable
from ..ablation import CONFIGURATIONS
from ..ablation import ablate as study
from . import metric, options

_FOLDERS = ", ".join(one.folder for one in CONFIGURATIONS)


@options.with_settings("weights")  # which are what the study varies
def ablate(
    data: options.RequiredData,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the six trainings, the table and the plot.")
    ],
    lpips: metric.Lpips = None,
    no_lpips: metric.NoLpips = False,
    only: Annotated[
        str | None,
        typer.Option(
            help=f"Some of the trainings alone, such as all,no-msfef, of: {_FOLDERS}.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Measure on the first so many pictures.", min=1, show_default=False)
    ] = None,
    device: options.Device = None,
    workers: options.Workers = 2,
    backend: options.Backend = "auto",
    **settings: Any,
) -> None:
    """Train and measure the paper's six configurations: its table, best values bold, and a plot.

    All losses; without MSE; without perceptual; without style; without both; all without MSFEF. Given again
    after whatever ended it, the command goes on where it was.
    """
    reports = study(
        options.given({"data": data, **settings}),
        output,
        lpips=metric.metric(lpips, no_lpips),
        only=options.listed(only),
        limit=limit,
        device=device,
        workers=workers,
        backend=backend,
        announce=lambda line: typer.echo(printable(line), err=True),
    )
    if reports is None:
        typer.echo(f"stopped; the same command goes on from the checkpoints in {printable(output)}", err=True)
        raise typer.Exit(130)
    if reports:
        Console().print(tables.ablation_screen(reports))
        typer.echo(f"written to {printable(output)}")
