"""How time grows with batch, resolution and hole ratio: the second MSFEF layer, only in a run with --full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from measure.case import Case
from names import FORWARD, TRAINING

LAYER = "msfef2"
BATCHES = (1, 2, 4, 8, 16)
RESOLUTIONS = (128, 256, 384, 512)
HOLE_RATIOS = ("none", "irregular:0.1", "irregular:0.2", "irregular:0.35", "irregular:0.5", "irregular:0.7")


def plan(level: str) -> list[Case]:
    axes = [Case(LAYER, "rectangle", "", batch=batch, sweep="batch") for batch in BATCHES]
    axes += [Case(LAYER, "rectangle", "", size=size, sweep="resolution") for size in RESOLUTIONS]
    axes += [Case(LAYER, mask, "", sweep="hole ratio") for mask in HOLE_RATIOS]
    return [replace(case, direction=direction) for case in axes for direction in (FORWARD, TRAINING)]


def test_sweep(case: Case, measure_case: Callable[[Case], None]) -> None:
    measure_case(case)
