"""Checks of plain arguments: numbers, pairs, choices."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


def integer(user: str, name: str, value: Any, least: int, below: int | None = None) -> int:
    """`value` as an int of at least `least` and below `below`; else TypeError or ValueError."""
    expected = f"an int of at least {least}" if below is None else f"an int in [{least}, {below})"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{user}: {name} must be {expected}, got {type(value).__name__}") from None
    if isinstance(value, bool):
        raise TypeError(f"{user}: {name} must be {expected}, got {value}")
    if number < least or (below is not None and number >= below):
        raise ValueError(f"{user}: {name} must be {expected}, got {number}")
    return number


def interval(user: str, names: str, low: Any, high: Any, expected: str, limits: tuple[float, float]) -> None:
    """ValueError or TypeError unless limits[0] <= low <= high <= limits[1]; `names` names both arguments."""
    if any(isinstance(end, bool) or not isinstance(end, numbers.Real) for end in (low, high)):
        raise TypeError(f"{user}: {names} must be numbers, {expected}, got {low!r} and {high!r}")
    if not (math.isfinite(low) and math.isfinite(high) and limits[0] <= low <= high <= limits[1]):
        raise ValueError(f"{user}: {names} must satisfy {expected}, got {low} and {high}")


def choice(user: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        names = ", ".join(map(repr, choices))
        raise ValueError(f"{user}: {name} must be one of {names}, got {value!r}")
