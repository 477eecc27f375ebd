"""``pconv-ext doctor``."""

from __future__ import annotations

import typer

from ...doctor import report


def doctor() -> None:
    """What info shows, and a check of every backend, operator and dtype against the reference.

    The exit code is 1 where one is wrong. This is what a bug report needs.
    """
    text, passed = report()
    typer.echo(text)
    if not passed:
        raise typer.Exit(1)
