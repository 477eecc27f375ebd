"""Which GPU backend was measured faster: the table that "auto" follows.

``tools/write_measured.py`` writes dispatch.json from what ``benchmarks/gpu.sh bench`` measured; nobody
edits it by hand. A GPU generation without measurements has no rows, and "auto" keeps its fixed order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

FILE = Path(__file__).with_name("dispatch.json")
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "bfloat16", torch.float32: "float32"}
FORWARD, TRAINING = "forward", "forward + backward"


class Row(NamedTuple):
    """One measured call, as in dispatch.json."""

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
    """The rows of a dispatch.json."""
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


def faster(op: str, args: tuple[Any, ...]) -> str:
    """The backend measured faster for ``op(*args)``, the operator's checked arguments; "" if none was."""
    if not TABLE:
        return ""
    x: Tensor = args[2] if op == "upcat_partial_conv2d" else args[0]
    weight: Tensor = args[2][0] if op == "msfef" else args[2] if op == "partial_conv2d" else args[4]
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (args[0], x, weight))
    key = (_capability(x.device.index), op, DTYPES[x.dtype], TRAINING if training else FORWARD)
    c_out, c_in = max(weight.shape[0], 1), max(weight.shape[1], 1)
    return lookup(key, c_in, c_out, x.shape[0] * x.shape[2] * x.shape[3])


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _capability(index: int) -> str:
    return _capability_of(index)


@cache
def _capability_of(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{major}.{minor}"
