"""What a GPU run says: its layers beside their floors, and the goals with PASS or miss.

`python benchmarks/gpu_report.py FILE` prints both from the JSON that `gpu.sh bench` wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import floors
import gpu_dispatch
import report
from layers import MSFEF, PARTIAL_CONV, UPCAT
from names import COMPILED, FORWARD, HYBRID, NAIVE_1, NAIVE_C, PLAIN, TRAINING
from report import Record

COMPARED = {NAIVE_C: "x naive C", NAIVE_1: "x naive 1", COMPILED: "x compiled", HYBRID: "x hybrid"}
DIRECTIONS = (FORWARD, TRAINING)
HOST_BOUND = 0.9  # of a call's time spent by the host issuing it: the GPU waited
MSFEF_NAMES = tuple(layer.name for layer in MSFEF)
UPCAT_NAMES = tuple(layer.name for layer in UPCAT)
EDGE_NAMES = (MSFEF_NAMES[0], UPCAT_NAMES[-1])  # 3 channels in, 3 out
INNER_NAMES = (*MSFEF_NAMES[1:], *(layer.name for layer in PARTIAL_CONV), *UPCAT_NAMES[:-1])


@dataclass(frozen=True)
class Goal:
    """A ratio to reach in each of `layers`; `bars` has one bar for each of them, or one for all."""

    what: str
    layers: tuple[str, ...]
    value: Callable[[Record, str], float | None]
    bars: dict[str, tuple[float, ...]]
    at_most: bool = False

    def bar(self, direction: str, layer: str) -> float:
        bars = self.bars[direction]
        return bars[self.layers.index(layer)] if len(bars) > 1 else bars[0]

    def reached(self, direction: str, layer: str, value: float) -> bool:
        bar = self.bar(direction, layer)
        return value <= bar if self.at_most else value >= bar


def faster_than(form: str) -> Callable[[Record, str], float | None]:
    return lambda record, ours: report.ratio(record, form, ours)


def over_plain(record: Record, ours: str) -> float | None:
    return report.ratio(record, ours, PLAIN)


def over_naive_peak(record: Record, ours: str) -> float | None:
    mine, naive = report.peak_mb(record, ours), report.peak_mb(record, NAIVE_C)
    return mine / naive if mine is not None and naive else None


def of_cuda(value: Callable[[Record], float | None]) -> Callable[[Record, str], float | None]:
    """For lines about the CUDA backend, where both were timed."""
    return lambda record, ours: value(record) if ours == "cuda" and "triton" in record["forms"] else None


def cuda_over_triton(record: Record) -> float | None:
    return report.ratio(record, "triton", "cuda")


def cuda_over_best(record: Record) -> float | None:
    return max(report.ratio(record, "cuda", "triton") or 0.0, 1.0)


def auto_over_best(record: Record) -> float | None:
    chosen = gpu_dispatch.automatic(record)
    return max(report.ratio(record, chosen, other) or 0.0 for other in gpu_dispatch.BACKENDS)


GOALS = [
    Goal(
        "MSFEF: faster than naive, C-channel mask",
        MSFEF_NAMES,
        faster_than(NAIVE_C),
        {FORWARD: (4.0,), TRAINING: (3.0,)},
    ),
    Goal(
        "MSFEF: faster than naive, 1-channel mask, compiled",
        MSFEF_NAMES,
        faster_than(COMPILED),
        {FORWARD: (2.0,), TRAINING: (1.6,)},
    ),
    Goal(
        "MSFEF: time over one plain 7x7 convolution",
        MSFEF_NAMES,
        over_plain,
        {FORWARD: (1.0, 1.0, 1.1, 1.2), TRAINING: (1.2,)},
        at_most=True,
    ),
    Goal(
        "decoder: faster than up-sample + cat + naive, C-channel",
        UPCAT_NAMES,
        faster_than(NAIVE_C),
        {FORWARD: (2.0,), TRAINING: (1.6,)},
    ),
    Goal(
        "memory: peak over that of naive, C-channel mask",
        MSFEF_NAMES[:2],
        over_naive_peak,
        {FORWARD: (1 / 3,), TRAINING: (1 / 3,)},
        at_most=True,
    ),
    Goal(
        "first and last layer: CUDA faster than Triton",
        EDGE_NAMES,
        of_cuda(cuda_over_triton),
        {FORWARD: (1.5,), TRAINING: (1.5,)},
    ),
    Goal(
        "inner layers: time of CUDA over that of the faster backend",
        INNER_NAMES,
        of_cuda(cuda_over_best),
        {FORWARD: (1.2,), TRAINING: (1.2,)},
        at_most=True,
    ),
    Goal(
        "time of auto's choice over that of the faster backend",
        (*MSFEF_NAMES, *INNER_NAMES[3:], UPCAT_NAMES[-1]),
        of_cuda(auto_over_best),
        {FORWARD: (1.05,), TRAINING: (1.05,)},
        at_most=True,
    ),
]

# A training step of the whole network: over ours, at least.
NETWORK_TIMES = {NAIVE_1: 2.5, NAIVE_C: 2.5, COMPILED: 1.6}
NETWORK_MEMORY = 2.0


def layer_table(content: dict[str, Any]) -> list[str]:
    """One line a layer, mask, dtype and backend; a cell holds forward and forward + backward."""
    known = content["ceilings"]
    head = f"{'layer':<9}{'mask':<11}{'dtype':<10}{'ours':<10}{'ms':>15}{'TFLOP/s':>13}{'% of floor':>11}"
    head += f"{'/ plain':>12}" + "".join(f"{name:>12}" for name in COMPARED.values())
    lines = [
        "ceilings: " + (", ".join(f"{name} {value:g}" for name, value in known.items()) or "not measured"),
        head,
    ]
    for (layer, mask, dtype, ours), pair in _pairs(content["records"]).items():

        def cell(value: Callable[[Record], float | None], unit: str, pair: dict[str, Record] = pair) -> str:
            values = [value(pair[direction]) for direction in DIRECTIONS if direction in pair]
            return "/".join("-" if v is None else format(v, unit) for v in values)

        waiting = {d: _host_bound(pair[d], ours) for d in pair}
        ms = "/".join(f"{report.median_ms(pair[d], ours):.3f}{'*' if waiting[d] else ''}" for d in pair)
        line = f"{layer:<9}{mask:<11}{dtype:<10}{ours:<10}{ms:>15}"
        if known:
            rate = cell(lambda r, o=ours: floors.operations(r) / report.median_ms(r, o) / 1e9, ".1f")
            share = cell(lambda r, o=ours: floors.floor_ms(r, known) / report.median_ms(r, o), ".0%")
            line += f"{rate:>13}{share:>11}"
        else:
            line += f"{'-':>13}{'-':>11}"
        line += f"{cell(lambda r, o=ours: over_plain(r, o), '.2f'):>12}"
        for form in COMPARED:
            line += f"{cell(lambda r, f=form, o=ours: report.ratio(r, f, o), '.2f'):>12}"
        lines.append(line)
    lines.append(f"*: the host needs at least {HOST_BOUND:.0%} of that time to issue the call, the GPU waits")
    lines.append(
        "cells: forward/forward + backward; x: times faster than; / plain: time over that of one convolution"
    )
    return lines


def goal_table(content: dict[str, Any]) -> list[str]:
    """For each goal, direction, dtype, mask and backend one line: its verdict, and each layer's value."""
    lines = []
    records = content["records"]
    for goal in GOALS:
        for direction in DIRECTIONS:
            rows = [*_goal_rows(goal, direction, records)]
            bars = "/".join(f"{bar:.3g}" for bar in goal.bars[direction])
            lines.append(f"{goal.what}, {direction}: {'<=' if goal.at_most else '>='} {bars}")
            lines += rows or ["  not measured"]
    return lines


def network_goals(networks: list[Record]) -> list[str]:
    """Verdicts on the whole network's training step: ours against the naive forms, time and peak memory."""
    lines = ["network, training step: times faster than, and times the peak memory of, ours"]
    for record in networks:
        forms = record["forms"]
        for ours in (name for name in record["ours"] if name in forms):
            for naive, bar in NETWORK_TIMES.items():
                times = report.ratio(record, naive, ours)
                if times is None:
                    continue
                memory = forms[naive]["peak_mb"] / forms[ours]["peak_mb"]
                verdict = "PASS" if times >= bar and memory >= NETWORK_MEMORY else "miss"
                bars = f"({bar:g}, {NETWORK_MEMORY:g})"
                lines.append(f"  {verdict}  {ours:<9} {times:.2f} {memory:.2f} {bars} {naive}")
    return lines if len(lines) > 1 else [*lines, "  not measured"]


def slower(content: dict[str, Any]) -> list[str]:
    """Where ours loses to another composition."""
    lines = []
    for form in (NAIVE_1, HYBRID):
        cases = [
            f"{r['layer']} {r['mask']} {r['dtype']} {r['direction']} ({ours} {value:.2f})"
            for r, ours in report.rows(content["records"])
            if (value := report.ratio(r, form, ours)) is not None and value < 1
        ]
        lines.append(f"slower than {form}: {'; '.join(cases) or 'none'}")
    return lines


def _goal_rows(goal: Goal, direction: str, records: list[Record]) -> Iterator[str]:
    kinds: dict[tuple[str, str, str], dict[str, float]] = {}
    for record, ours in report.rows(records):
        if record["layer"] in goal.layers and record["direction"] == direction:
            value = goal.value(record, ours)
            if value is not None:
                kinds.setdefault((record["dtype"], record["mask"], ours), {})[record["layer"]] = value
    for (dtype, mask, ours), values in kinds.items():
        missed = [layer for layer, value in values.items() if not goal.reached(direction, layer, value)]
        verdict = "miss" if missed else "PASS" if len(values) == len(goal.layers) else "part"
        shown = " ".join(
            (f"{values[layer]:.2f}" + "!" * (layer in missed)) if layer in values else "-"
            for layer in goal.layers
        )
        yield f"  {verdict}  {dtype:<9}{mask:<10}{ours:<9} {shown}"


def _pairs(records: list[Record]) -> dict[tuple[str, str, str, str], dict[str, Record]]:
    pairs: dict[tuple[str, str, str, str], dict[str, Record]] = {}
    for record, ours in report.rows(records):
        key = (record["layer"], record["mask"], record["dtype"], ours)
        pairs.setdefault(key, {})[record["direction"]] = record
    return pairs


def _host_bound(record: Record, ours: str) -> bool:
    issuing = record["forms"][ours].get("host_ms", 0.0)
    return issuing >= HOST_BOUND * report.median_ms(record, ours)


def text(content: dict[str, Any]) -> str:
    """Layers first and goals last, so that the end of a log holds what was to be reached."""
    missing = {
        f"{r['layer']} {r['dtype']} {r['mask']}: {form} is missing: {why}"
        for r in content["records"]
        for form, why in r["missing"].items()
    }
    return "\n".join(
        [
            *report.network_table(content["networks"]),
            "",
            *layer_table(content),
            "",
            *slower(content),
            *sorted(missing),
            *(f"failed: {failure}" for failure in content["failures"]),
            "",
            *network_goals(content["networks"]),
            *goal_table(content),
            "!: the layer misses; part: all layers measured so far pass, some are missing",
            f"stopped: {content['stopped'] or 'no, all was measured'}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    print(text(json.loads(parser.parse_args().results.read_text())))


if __name__ == "__main__":
    main()
