"""The commands, one file each: train, evaluate, ablate, inpaint, serve, info, doctor, tune.

A command raises what the functions it calls raise. `run` makes one line on standard error of it and exits
with 1; warnings are one line each too.
"""

from __future__ import annotations

import importlib.metadata
import io
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .._arguments import given_by_command, printable
from .ablate import ablate
from .doctor import doctor
from .evaluate import evaluate
from .info import info
from .inpaint import inpaint
from .serve import serve
from .train import train
from .tune import tune

app = typer.Typer(
    name="pconv-ext",
    help="Train, evaluate and use inpainting networks of partial convolutions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(importlib.metadata.version("pconv_ext"))
        raise typer.Exit


class _Command(TyperCommand):
    """A command whose errors name its options, and to which an empty path is not the working folder."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        for before, one in zip(("", *args), args, strict=False):
            if not one or (one.startswith("--") and one.endswith("=")):
                name = one.removesuffix("=") or (before if before.startswith("-") else "an argument")
                raise ValueError(f"{self.name}: {name} must not be empty")
        return super().parse_args(context, args)

    def invoke(self, context: Any) -> Any:
        options = {one.name: max(one.opts, key=len) for one in self.params if one.opts[0].startswith("-")}
        with given_by_command(str(self.name), options):
            return super().invoke(context)


for _command in (train, evaluate, ablate, inpaint, serve, info, doctor, tune):
    app.command(cls=_Command)(_command)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run a command; `arguments` by default those of the process. Always raises SystemExit."""
    for stream in (sys.stdout, sys.stderr):  # a name that an encoding lacks is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app(args=None if arguments is None else list(arguments), prog_name="pconv-ext")
        except (ArithmeticError, ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
            print(f"pconv-ext: {_line(error) or type(error).__name__}", file=sys.stderr)
            sys.exit(1)


def _line(message: Any) -> str:
    text = str(message).strip()
    if text.startswith("Caught ") and "Traceback" in text:  # from a process that loads pictures
        text = text.splitlines()[-1].partition(": ")[2]
    return printable(" ".join(text.split()))


def _show_warning(
    message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None
) -> None:
    print(f"pconv-ext: warning: {_line(message)}", file=sys.stderr)
