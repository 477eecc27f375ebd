"""What is said of a setting of a training, once: its check, its documentation and its option in commands."""

from __future__ import annotations

import dataclasses
import functools
import re
import textwrap
import typing
from collections.abc import Callable
from typing import Any, TypeVar

Config = TypeVar("Config", bound=type)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Stands in the annotation of a field: ``size: Annotated[int, Setting("Height and width ...")] = 256``.

    Attributes:
        help: a sentence about it; ``{masks}`` is another setting's name, as the reader knows it.
        check: called with whom an error is from, the name and the value; raises TypeError or ValueError.
        panel: the heading under which commands list it.
        path: whether it is the path of a file or folder.
        replaceable: whether it may differ when a training is resumed.
        default: how its default is told, where that is not the field's own.
    """

    help: str
    check: Callable[[str, str, Any], object] | None = None
    panel: str = ""
    path: bool = False
    replaceable: bool = False
    default: str | None = None


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a configuration: its name, type and `Setting`, and its default as it is told, or ""."""

    name: str
    type: Any
    setting: Setting
    default: str

    def help(self, spelling: Callable[[str], str], example: str = "") -> str:
        """The sentence about it, with an example, and its default.

        Args:
            spelling: gives the names of other settings.
            example: a value as the reader writes it.
        """
        text = re.sub(r"\{(\w+)\}", lambda name: spelling(name[1]), self.setting.help)
        if example:
            text = f"{text.rstrip('.')}, such as {example}."
        return f"{text} (default: {self.default})" if self.default else text


@functools.cache
def fields(config: type) -> dict[str, Field]:
    """The fields of a configuration by name, in their order."""
    hints = typing.get_type_hints(config, include_extras=True)
    found = {}
    for field in dataclasses.fields(config):
        kind, setting = typing.get_args(hints[field.name])
        default = setting.default if setting.default is not None else _told(field.default)
        found[field.name] = Field(field.name, kind, setting, default)
    return found


def _told(default: Any) -> str:
    if default is None or default is False or default is dataclasses.MISSING:
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def documented(config: Config) -> Config:
    """Append what is said of the fields of a configuration to its docstring."""
    lines = ["Attributes:"]
    for field in fields(config).values():
        text = f"{field.name}: {field.help(str)}"
        lines += textwrap.wrap(text, 106, initial_indent=" " * 4, subsequent_indent=" " * 8)
    told = textwrap.indent("\n".join(lines), " " * 4)
    config.__doc__ = f"{(config.__doc__ or '').rstrip()}\n\n{told}\n"
    return config
