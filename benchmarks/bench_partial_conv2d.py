"""The network's plain partial convolutions, encoder stages 5 to 8."""

from __future__ import annotations

from collections.abc import Callable

from layers import PARTIAL_CONV
from names import FORWARD, TRAINING
from runner import Case


def plan(level: str) -> list[Case]:
    layers = PARTIAL_CONV[:1] if level == "quick" else PARTIAL_CONV
    masks = ["none", "rectangle", "irregular"] if level == "full" else ["rectangle"]
    return [
        Case(layer.name, mask, direction)
        for layer in layers
        for mask in masks
        for direction in (FORWARD, TRAINING)
    ]


def test_partial_conv2d(case: Case, measure_case: Callable[[Case], None]) -> None:
    measure_case(case)
