"""The options of several commands: one for each setting of `pconv_ext.training.TrainConfig`, and others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from ..._backends import backends
from .._ranges import Ranges
from ..training.config import KernelSizes, TrainConfig
from ..training.phases import Phases
from ..training.setting import Field, fields

Command = TypeVar("Command", bound=Callable[..., Any])

_FIELDS = fields(TrainConfig)


def with_settings(*without: str) -> Callable[[Command], Command]:
    """Give a command an option for each setting but for those of `without`, in place of its ``**settings``.

    An option that is not given is None, so that a resumed training keeps its own.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        *own, _ = signature.parameters.values()
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(field))
            for name, field in _FIELDS.items()
            if name not in signature.parameters and name not in without
        ]
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return command

    return decorate


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that were given, as `TrainConfig` takes them.

    Raises:
        ValueError: a value that cannot be read.
    """
    found = {}
    for name, value in settings.items():
        if value not in (None, [], ()):
            text = _TEXTS.get(_FIELDS[name].type)
            found[name] = text.read(value) if text else value
    return found


def listed(text: str | None) -> list[str]:
    """The names in a text such as "mean,telea", each once; none without a text."""
    return [] if text is None else [*dict.fromkeys(map(str.strip, text.split(",")))]


def _option(field: Field) -> Any:
    kind, example = field.type, ""
    if field.type in _TEXTS:
        kind, example = _TEXTS[field.type].kind, _TEXTS[field.type].example
    help, panel = field.help(_spelled, example), field.setting.panel
    option = typer.Option(_spelled(field.name), help=help, rich_help_panel=panel, show_default=False)
    return Annotated[kind | None, option]


def _spelled(name: str) -> str:
    return "DATA" if name == "data" else "--" + name.replace("_", "-")


def _kernel_sizes(text: str) -> list[Any]:
    try:
        stages = [[int(size) for size in stage.split(",")] for stage in text.split("/")]
    except ValueError:
        raise ValueError(f"--kernel-sizes must look like 3,5,7 or 3,5,7/3,5, got {text!r}") from None
    return stages if "/" in text else stages[0]


def _weights(texts: list[str]) -> dict[str, float]:
    return dict(map(_weight, texts))


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"--weights must look like style=120, got {text!r}") from None


def _phases(texts: list[str]) -> list[dict[str, Any]]:
    return [_phase(text) for text in texts]


def _phase(text: str) -> dict[str, Any]:
    phase: dict[str, Any] = {"weights": {}}
    try:
        for part in text.split():
            name, _, value = part.partition("=")
            if name in ("size", "batch_size"):
                phase[name] = [int(one) for one in value.split(",")]
            elif name == "epoch":
                phase[name] = int(value)
            else:
                phase["weights"][name] = float(value)
    except ValueError:
        raise ValueError(f"--phases must look like {_PHASE!r}, got {text!r}") from None
    return phase


class _Text(NamedTuple):
    """How a command line has what Python has as an object: the option's type, what reads it, an example."""

    kind: Any
    read: Callable[[Any], Any]
    example: str


def _ranges(text: str) -> list[list[float]]:
    try:
        return [[float(low), float(high)] for low, high in (pair.split(",") for pair in text.split("/"))]
    except ValueError:
        raise ValueError(f"--ranges must look like 270,310/0,50, got {text!r}") from None


_PHASE = "epoch=41 size=128,256 batch_size=8,2 style=120"
_TEXTS: dict[Any, _Text] = {
    KernelSizes: _Text(str, _kernel_sizes, "3,5,7,9/3,5,7/3,5,7/3,5"),
    Sequence[str]: _Text(str, listed, "u,v"),
    Ranges | None: _Text(str, _ranges, "270,310/0,50 of two channels"),
    Phases: _Text(list[str], _phases, f'"{_PHASE}"; may be repeated'),
    Mapping[str, float]: _Text(list[str], _weights, "style=0; may be repeated"),
}

_DATA = _FIELDS["data"].help(_spelled)
Data = Annotated[Path | None, typer.Argument(metavar="DATA", help=_DATA, show_default=False)]
RequiredData = Annotated[Path, typer.Argument(metavar="DATA", help=_DATA)]
Device = Annotated[
    str | None,
    typer.Option(help="Such as cpu or cuda:1; by default a GPU where there is one.", show_default=False),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        "-c",
        help="A .safetensors, the folder of a training run, or the network that comes with pconv_ext.",
    ),
]
Workers = Annotated[int, typer.Option(help="Processes that load pictures.", min=0)]
Backend = Annotated[str, typer.Option(help=f"Of the partial convolutions: auto, {', '.join(backends())}.")]
