"""Checks of plain arguments: numbers, pairs, choices. Errors call an argument as whoever gave it does."""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

# The command that runs, if any, and its options by the names of the arguments that they become.
_command: ContextVar[tuple[str, Mapping[str, str]]] = ContextVar(
    "command", default=("", MappingProxyType({}))
)


@contextlib.contextmanager
def given_by_command(command: str, options: Mapping[str, str]) -> Iterator[None]:
    """Errors meanwhile name the options of a command, by the name of the argument, in place of arguments."""
    token = _command.set((command, options))
    try:
        yield
    finally:
        _command.reset(token)


def named(name: str) -> str:
    """What the user calls an argument: "batch_size", or "--batch-size" where a command has this option."""
    return _command.get()[1].get(name, name)


def about(user: str, name: str) -> str:
    """How an error about an argument begins: "TrainConfig: batch_size", or "train: --batch-size"."""
    command, options = _command.get()
    return f"{command}: {options[name]}" if name in options else f"{user}: {name}"


def printable(text: Any) -> str:
    """`text` with escapes for what would be no letters: names of files may hold what steers a terminal."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(text))


def integer(user: str, name: str, value: Any, least: int, below: int | None = None) -> int:
    """`value` as an int of at least `least` and below `below`; else TypeError or ValueError."""
    expected = f"an int of at least {least}" if below is None else f"an int in [{least}, {below})"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{about(user, name)} must be {expected}, got {type(value).__name__}") from None
    if isinstance(value, bool):
        raise TypeError(f"{about(user, name)} must be {expected}, got {value}")
    if number < least or (below is not None and number >= below):
        raise ValueError(f"{about(user, name)} must be {expected}, got {number}")
    return number


def interval(user: str, names: str, low: Any, high: Any, expected: str, limits: tuple[float, float]) -> None:
    """ValueError or TypeError unless limits[0] <= low <= high <= limits[1]; `names` names both arguments."""
    if any(isinstance(end, bool) or not isinstance(end, numbers.Real) for end in (low, high)):
        raise TypeError(f"{user}: {names} must be numbers, {expected}, got {low!r} and {high!r}")
    if not (math.isfinite(low) and math.isfinite(high) and limits[0] <= low <= high <= limits[1]):
        raise ValueError(f"{user}: {names} must satisfy {expected}, got {low} and {high}")


def number(user: str, name: str, value: Any, fits: Callable[[Any], bool], expected: str) -> None:
    """ValueError unless `value` is finite and `fits`; `expected` says which numbers do."""
    if not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{about(user, name)} must be {expected}, got {value}")


def choice(user: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        names = ", ".join(map(repr, choices))
        raise ValueError(f"{about(user, name)} must be one of {names}, got {value!r}")
