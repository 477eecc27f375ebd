"""A training step of the paper's network, on 256x256 photographs with rectangular holes."""

from __future__ import annotations

from collections.abc import Callable

from measure.training_step import Case


def plan(level: str) -> list[Case]:
    return [Case(16)] if level == "quick" else [Case(compiled=level == "full")]


def test_training_step(case: Case, measure_network: Callable[[Case], None]) -> None:
    measure_network(case)
