"""Which GPU backend was measured faster: the table that "auto" follows.

``tools/write_measured.py`` writes measured.json from what ``benchmarks/gpu.sh bench`` measured; nobody
edits it by hand. A GPU generation without measurements has no rows, and "auto" keeps its fixed order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from ..ops.call import Call

FILE = Path(__file__).with_suffix(".json")
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "bfloat16", torch.float32: "float32"}
FORWARD, TRAINING = "forward", "forward + backward"


class Row(NamedTuple):
    """One measured call, as in measured.json."""

    capability: str  # of the GPU: "9.0"
    operator: str
    dtype: str  # bfloat16 stands for float16 too; float32 is tf32
    direction: str
    c_in: int
    c_out: int
    pixels: int  # of the batch of features: x, or the skip
    backend: str  # the faster one
    times: float  # as fast as the other


Key = tuple[str, str, str, str]  # the first four of a Row
Channels = tuple[int, int]
Limits = tuple[tuple[float, str], ...]  # up to that many pixels that backend; ascending, the last infinite
Table = dict[Key, dict[Channels, Limits]]


def table(rows: Iterable[Row]) -> Table:
    """Rows by what is looked up. Between two measured sizes the limit is their geometric mean."""
    groups: dict[Key, dict[Channels, list[Row]]] = {}
    for row in sorted(rows):
        groups.setdefault(row[:4], {}).setdefault((row.c_in, row.c_out), []).append(row)
    return {
        key: {
            channels: tuple(
                (math.sqrt(one.pixels * larger.pixels) if larger else math.inf, one.backend)
                for one, larger in zip(measured, [*measured[1:], None], strict=True)
            )
            for channels, measured in by_channels.items()
        }
        for key, by_channels in groups.items()
    }


def read(file: Path) -> list[Row]:
    """The rows of a measured.json."""
    return [Row(**row) for row in json.loads(file.read_text())["rows"]]


TABLE = table(read(FILE))


def lookup(key: Key, c_in: int, c_out: int, pixels: int) -> str:
    """The faster backend at the nearest number of channels that was measured; "" where nothing was."""
    nearest = math.inf
    limits: Limits = ((math.inf, ""),)
    for at, found in TABLE.get(key, {}).items():  # a loop that torch.compile can trace
        distance = abs(math.log(at[0] / c_in)) + abs(math.log(at[1] / c_out))
        if distance < nearest:
            nearest, limits = distance, found
    for limit, backend in limits:
        if pixels <= limit:
            return backend
    raise AssertionError("the last limit is infinite")


def faster(call: Call) -> str:
    """The backend measured faster for `call`; "" if none was."""
    if not TABLE:
        return ""
    x, weight = call.like, call.weights[0]
    trained = (*(source.x for source in call.sources), weight)
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in trained)
    key = (_capability(x.device.index), call.op, DTYPES[x.dtype], TRAINING if training else FORWARD)
    c_out, c_in = max(weight.shape[0], 1), max(weight.shape[1], 1)
    return lookup(key, c_in, c_out, x.shape[0] * x.shape[2] * x.shape[3])


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _capability(index: int) -> str:
    return _capability_of(index)


@cache
def _capability_of(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{major}.{minor}"
