"""``pconv-ext serve``."""

from __future__ import annotations

import ipaddress
import socket
from typing import Annotated, Any

import typer

from .._arguments import about, integer
from .._extras import require
from .._networks import SHIPPED
from ..inpainter import Inpainter
from .options import Checkpoint, Device

_LOCAL = ["127.0.0.1", "localhost", "[::1]"]


def serve(
    checkpoint: Checkpoint = SHIPPED,
    host: Annotated[str, typer.Option(help="Address to listen at; by default this machine's alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 = one that is free.")] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A name that the server may be called by, beside localhost and --host; repeat it."),
    ] = None,
    device: Device = None,
) -> None:
    """A page on which to paint over what is to go from a picture, and the same over HTTP.

    POST /inpaint takes a multipart form with the fields image and mask (dark or transparent = hole) and gives
    a PNG back; GET /health; the description is at /openapi.json. Nothing is written to the disk, and nothing
    leaves the machine.
    """
    integer("serve", "port", port, 0, 65536)
    uvicorn = require("serve", "uvicorn", "serve")
    make_app = require("serve", "pconv_ext.inpainting.serve.app", "serve").make_app
    inpainter = Inpainter(checkpoint, device)
    app = make_app(inpainter, [*_LOCAL, *_called(host), *(name or ())])
    try:
        listening = socket.create_server((host, port), family=_family(host))
    except OSError as error:
        raise OSError(
            f"{about('serve', 'port')} must be one that is free at {host}, {port} is not: {error.strerror}"
        ) from error
    print(f"http://{_written(host)}:{listening.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_keep_alive=5)
    uvicorn.Server(config).run(sockets=[listening])


def _family(host: str) -> Any:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _called(host: str) -> list[str]:
    """The names that an address to listen at is called by; none for all addresses."""
    try:
        return [] if ipaddress.ip_address(host).is_unspecified else [_written(host)]
    except ValueError:
        return [host]
