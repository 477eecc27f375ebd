"""``pconv-ext tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ... import _machine
from ..._backends import measured
from ..._tuning import problems
from ..._tuning import tune as tuning
from .._arguments import about, choice, integer
from .._device import find_device
from ..checkpoint import load_net
from ..model import InpaintingNet
from ..tuning import BATCHES, DTYPES, network_problems
from .options import Device, listed

_PAPER = "paper"
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in measured.DTYPES}


def tune(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "-c",
            help="The layers of this network: a .safetensors, the folder of a training, or pconv-photos.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="paper: the layers of the paper's network, the default.", show_default=False),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help=f"{problems.FORM}; may be repeated.", show_default=False),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Batches of a network's pictures; by default 4,1, on a GPU 32,1.", show_default=False
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help=f"Any of {','.join(_NAMES)}; by default float32, on a GPU bfloat16,float32.",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    export: Annotated[
        bool,
        typer.Option(
            "--export", help="Print the table of this machine, as the package has one; measure nothing."
        ),
    ] = False,
) -> None:
    """Check and time the backends on this machine, and write the table that "auto" then follows.

    Each is checked against the reference in float64 first: one that is wrong is banned, which "auto" obeys,
    and the exit code is 1. The table is kept in the cache folder of the user, for this GPU or processor, its
    driver, torch and version of pconv_ext; what it has of other shapes stays.
    """
    user = "tune"
    given = {"checkpoint": checkpoint, "layers": layers, "shape": shape, "batch": batch, "dtype": dtype}
    where = find_device(user, device)
    if export:
        for name, value in given.items():
            if value:
                raise ValueError(f"{about(user, name)} is about what is measured, --export measures nothing")
        typer.echo(tuning.export(_machine.identity(where)), nl=False)
        return
    sources = [name for name in ("checkpoint", "layers", "shape") if given[name]]
    if len(sources) > 1:
        raise ValueError(f"{about(user, sources[1])} cannot go with {about(user, sources[0]).split()[-1]}")
    if shape and batch:
        raise ValueError(f"{about(user, 'batch')} is of a network's pictures, --shape has its own")
    choice(user, "layers", layers or _PAPER, (_PAPER,))
    for name in listed(dtype):
        choice(user, "dtype", name, tuple(_NAMES))
    dtypes = [_NAMES[name] for name in listed(dtype)] or DTYPES[where.type]
    if shape:
        chosen = [problems.of_shape(text, about(user, "shape")) for text in shape]
    else:
        batches = _batches(user, batch) or BATCHES[where.type]
        net = load_net(checkpoint, "reference") if checkpoint else InpaintingNet(backend="reference")
        chosen = network_problems(net, where, batches)
    findings = tuning.tune(chosen, where, dtypes, typer.echo)
    bans = {ban[:3]: ban for finding in findings for ban in finding.bans}
    for ban in bans.values():
        typer.echo(
            f'banned: "auto" no longer takes {ban.backend} for {ban.operator} {ban.dtype}: {ban.reason}'
        )
    if bans:
        raise typer.Exit(1)


def _batches(user: str, text: str | None) -> list[int]:
    try:
        batches = [int(one) for one in listed(text)]
    except ValueError:
        raise ValueError(f"{about(user, 'batch')} must look like 32,1, got {text!r}") from None
    return [integer(user, "batch", one, 1) for one in batches]
