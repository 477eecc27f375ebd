"""What was measured of the backends, as rows: how a call finds its row, and how rows are kept in JSON.

measured.json, which comes with the package, has rows by generation of GPU. ``tools/write_measured.py`` writes
it of what ``pconv-ext tune --export`` prints; nobody edits it by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import _autocast
from ..ops.call import Call

FILE = Path(__file__).with_suffix(".json")
DTYPES = {
    torch.bfloat16: "bfloat16",
    torch.float16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
FORWARD, TRAINING = "forward", "forward + backward"
_TIE = 1.02  # of the fastest time: as fast


class Row(NamedTuple):
    """One measured call."""

    capability: str  # of the GPU: "9.0"; of a processor, as torch calls it: "AVX512"
    operator: str
    dtype: str  # bfloat16 stands for float16 too; float32 is on a GPU what torch allows, tf32 by default
    direction: str
    c_in: int
    c_out: int
    taps: int  # of all windows together
    pixels: int  # of the batch of features: x, or the skip
    times: tuple[tuple[str, float], ...]  # backends, the one to take first; time over that of the fastest

    @property
    def call(self) -> tuple[Any, ...]:
        """All but the times."""
        return self[:-1]


Key = tuple[str, str, str]  # operator, dtype, direction
Size = tuple[int, int, int]  # c_in, c_out, taps
Ranking = tuple[str, ...]  # backends, fastest first
Limits = tuple[tuple[float, Ranking], ...]  # up to that many pixels so; ascending, the last infinite
Table = dict[Key, dict[Size, Limits]]


def row(call: tuple[Any, ...], ms: Mapping[str, float]) -> Row:
    """The row of a call, all but the last field, from the milliseconds of each backend.

    Of those that are as fast as the fastest, the first in `ms` goes before the others.
    """
    fastest = min(ms.values())
    names = sorted(ms, key=ms.__getitem__)
    first = next(name for name in ms if ms[name] <= _TIE * fastest)
    ranking = [first, *(name for name in names if name != first)]
    return Row._make((*call, tuple((name, round(ms[name] / fastest, 2)) for name in ranking)))


def table(rows: Iterable[Row]) -> Table:
    """Rows by what is looked up. Between two measured sizes the limit is their geometric mean."""
    groups: dict[Key, dict[Size, list[Row]]] = {}
    for one in sorted(rows):
        size = (one.c_in, one.c_out, one.taps)
        groups.setdefault((one.operator, one.dtype, one.direction), {}).setdefault(size, []).append(one)
    return {
        key: {
            size: tuple(
                (
                    math.sqrt(one.pixels * larger.pixels) if larger else math.inf,
                    tuple(name for name, _ in one.times),
                )
                for one, larger in zip(measured, [*measured[1:], None], strict=True)
            )
            for size, measured in by_size.items()
        }
        for key, by_size in groups.items()
    }


def lookup(found: Table, key: Key, size: Size, pixels: int) -> Ranking:
    """How backends rank at the nearest size that was measured; () where nothing was."""
    nearest = math.inf
    limits: Limits = ((math.inf, ()),)
    c_in, c_out, taps = size
    for at, its_limits in found.get(key, {}).items():  # a loop that torch.compile can trace
        distance = abs(math.log(at[0] / c_in)) + abs(math.log(at[1] / c_out)) + abs(math.log(at[2] / taps))
        if distance < nearest:
            nearest, limits = distance, its_limits
    for limit, ranking in limits:
        if pixels <= limit:
            return ranking
    raise AssertionError("the last limit is infinite")


def dtype_of(call: Call) -> torch.dtype:
    """What `call` is computed in, autocast included."""
    x = call.like
    if x.dtype != torch.float64 and _autocast.active(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def key_of(call: Call) -> Key:
    """By which a table knows `call`, trained or not."""
    trained = (*(source.x for source in call.sources), call.weights[0])
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in trained)
    return call.op, DTYPES[dtype_of(call)], TRAINING if training else FORWARD


def size_of(call: Call) -> Size:
    """Channels in, channels out and taps."""
    weight = call.weights[0]
    taps = sum([one.shape[2] * one.shape[3] for one in call.weights])
    return max(weight.shape[1], 1), max(weight.shape[0], 1), taps


def pixels_of(call: Call) -> int:
    x = call.like
    return x.shape[0] * x.shape[2] * x.shape[3]


def to_json(one: Row) -> dict[str, Any]:
    return one._asdict() | {"times": dict(one.times)}


def from_json(found: Any) -> Row:
    """A row of what `to_json` made; ValueError says what is wrong with it."""
    if not isinstance(found, dict) or found.keys() != {*Row._fields}:
        raise ValueError(f"a row must have {', '.join(Row._fields)}, got {found!r}")
    times, numbers = found["times"], [found[name] for name in ("c_in", "c_out", "taps", "pixels")]
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"channels, taps and pixels of a row must be positive ints, got {found!r}")
    if not all(isinstance(found[name], str) for name in ("capability", "operator")):
        raise ValueError(f"capability and operator of a row must be texts, got {found!r}")
    if found["dtype"] not in DTYPES.values() or found["direction"] not in (FORWARD, TRAINING):
        raise ValueError(f"a row of an unknown dtype or direction: {found!r}")
    if not (isinstance(times, dict) and times and all(_is_ratio(value) for value in times.values())):
        raise ValueError(f"times of a row must be ratios of at least 1 by backend, got {times!r}")
    return Row(**found | {"times": tuple(times.items())})


def _is_ratio(value: Any) -> bool:
    return type(value) in (int, float) and 1 <= value < math.inf


def packaged(file: Path = FILE) -> tuple[list[dict[str, str]], list[Row]]:
    """What a measured.json has: where its rows come from, for its reader, and the rows."""
    found = json.loads(file.read_text())
    return found["sources"], [from_json(one) for one in found["rows"]]


def to_package(sources: Iterable[Mapping[str, str]], rows: Iterable[Row]) -> str:
    """Content of a measured.json, a row a line."""
    listed = [
        ",\n".join(f"  {json.dumps(one)}" for one in part) for part in (sources, map(to_json, sorted(rows)))
    ]
    return '{{\n "sources": [\n{}\n ],\n "rows": [\n{}\n ]\n}}\n'.format(*listed)
