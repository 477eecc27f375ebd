"""What a run's JSON says: ratios, peaks, and whether its commit can be named. Needs no torch."""

from __future__ import annotations

import math
import statistics
from typing import Any

from names import DIRTY, PLAIN, STEP, UNKNOWN

Record = dict[str, Any]


def case_of(record: Record) -> tuple[str, str]:
    """Layer and direction; of a training step of the network its width stands for a layer."""
    return (
        (f"network{record['width']}", STEP) if "width" in record else (record["layer"], record["direction"])
    )


def samples(record: Record, form: str) -> list[float]:
    return record["forms"][form]["samples_ms"] if form in record["forms"] else []


def median_ms(record: Record, form: str) -> float:
    return statistics.median(samples(record, form))


def ratios(record: Record, numerator: str, denominator: str) -> list[float]:
    """Sorted ratios of the rounds; [] where a form is missing."""
    pairs = zip(samples(record, numerator), samples(record, denominator), strict=False)
    return sorted(a / b for a, b in pairs)


def ratio(record: Record, numerator: str, denominator: str) -> float | None:
    values = ratios(record, numerator, denominator)
    return statistics.median(values) if values else None


def spread(record: Record, ours: str) -> float:
    """How far the rounds disagree about the ratio to the plain convolution."""
    return spread_of(ratios(record, ours, PLAIN))


def spread_of(values: list[float]) -> float:
    """Interquartile range over median; 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / median


def over_earlier(record: Record) -> float | None:
    """Of a comparison with an earlier commit: the median of its rounds' ratios."""
    values = earlier_ratios(record)
    return statistics.median(values) if values else None


def earlier_ratios(record: Record) -> list[float]:
    """Of each round, in their order: time over the plain convolution now over that at the earlier commit."""
    return [new / old for old, new in zip(record["old"], record["new"], strict=True)]


def peak_mb(record: Record, form: str) -> float | None:
    """Peak memory above inputs and parameters without tensors as large as the weights; None if not taken."""
    peak = record["forms"].get(form, {}).get("peak_mb")
    return peak["other"] if peak else None


def rows(records: list[Record]) -> list[tuple[Record, str]]:
    """Each record once for each of our backends in it."""
    return [(record, ours) for record in records for ours in record["ours"]]


def measured_call(record: Record) -> tuple[tuple[str, str, str], tuple[int, int, int], int]:
    """As the table of measured backends knows it: its key, channels in, channels out and taps, pixels."""
    n, _, height, width = record["shapes"][-1]
    c_in = sum(shape[1] for shape in record["shapes"])
    size = (c_in, record["out_channels"], record["taps"])
    return (record["operator"], record["dtype"], record["direction"]), size, math.prod((n, height, width))


def where(machine: dict[str, Any]) -> str:
    """What was measured on, in a few words."""
    here = machine["gpu"] or "{processor}, {threads} threads, {cpu_capability}".format(**machine)
    return f"{here}; torch {machine['torch']}; commit {machine['commit']}"


def unfit(machine: dict[str, Any]) -> str:
    """Why figures of this run must not go into the documentation, "" if they may."""
    commit = machine["commit"]
    if commit == UNKNOWN or commit.endswith(DIRTY):
        return f"not fit for the README: measured at commit {commit}, commit what was measured first"
    return ""
