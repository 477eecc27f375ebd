"""The four MSFEF layers of the paper's network, with all masks."""

from __future__ import annotations

from collections.abc import Callable

from layers import MSFEF
from names import FORWARD, TRAINING
from runner import Case


def plan(level: str) -> list[Case]:
    masks = ["rectangle"] if level == "quick" else ["none", "rectangle", "irregular"]
    return [
        Case(layer.name, mask, direction, compiled=level != "quick")
        for layer in MSFEF
        for mask in masks
        for direction in (FORWARD, TRAINING)
    ]


def test_msfef(case: Case, measure_case: Callable[[Case], None]) -> None:
    measure_case(case)
