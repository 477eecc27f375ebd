"""`pconv-ext train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .._arguments import printable
from . import options


@options.with_settings()
def train(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the training: checkpoints, TensorBoard.")
    ],
    data: options.Data = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the training in --output, or begin it if there is none."),
    ] = False,
    device: options.Device = None,
    workers: options.Workers = 2,
    backend: options.Backend = "auto",
    **settings: Any,
) -> None:
    """Train a network on a folder of pictures.

    Ctrl-C saves a checkpoint, a second one does not. --resume, with or without the other options repeated,
    goes on bit for bit as if nothing had happened. For several GPUs: torchrun --nproc-per-node 4 -m
    pconv_ext train ...
    """
    from ..training import train as run

    chosen = options.given({"data": data, **settings})
    if not run(chosen, output, resume=resume, device=device, workers=workers, backend=backend):
        typer.echo(f"stopped; {printable(output)} holds a checkpoint, --resume goes on from it", err=True)
        raise typer.Exit(130)
