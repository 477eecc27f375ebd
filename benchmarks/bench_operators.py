"""Every operator on its layers of the paper's network, beside all other forms."""

from __future__ import annotations

from collections.abc import Callable

from measure.case import Case
from names import FORWARD, TRAINING
from operators import OPERATORS

MASKS = ("none", "rectangle", "irregular")


def plan(level: str) -> list[Case]:
    cases = []
    for operator in OPERATORS.values():
        layers = operator.quick if level == "quick" else operator.layers
        thorough = operator.thorough and level != "quick"
        cases += [
            Case(layer.name, mask, direction, compiled=thorough)
            for layer in layers
            for mask in (MASKS if thorough or level == "full" else ("rectangle",))
            for direction in (FORWARD, TRAINING)
        ]
    return cases


def test_operator(case: Case, measure_case: Callable[[Case], None]) -> None:
    measure_case(case)
