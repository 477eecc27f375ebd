"""The network's decoder stages, 9 to 16."""

from __future__ import annotations

from collections.abc import Callable

from layers import UPCAT
from names import FORWARD, TRAINING
from runner import Case


def plan(level: str) -> list[Case]:
    layers = UPCAT[-3::2] if level == "quick" else UPCAT
    masks = ["none", "rectangle", "irregular"] if level == "full" else ["rectangle"]
    return [
        Case(layer.name, mask, direction)
        for layer in layers
        for mask in masks
        for direction in (FORWARD, TRAINING)
    ]


def test_upcat_partial_conv2d(case: Case, measure_case: Callable[[Case], None]) -> None:
    measure_case(case)
