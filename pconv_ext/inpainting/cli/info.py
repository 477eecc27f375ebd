"""``pconv-ext info``."""

from __future__ import annotations

import typer

from ...info import report


def info() -> None:
    """Show versions, backends (and why some are missing), the processor and its threads."""
    typer.echo(report())
