"""What a run on a GPU says: its layers beside their floors, and the goals with PASS or miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from names import COMPILED, HYBRID, NAIVE_1, NAIVE_C
from report.floors import floor_ms, operations
from report.goals import DIRECTIONS, GPU, NETWORK_MEMORY, NETWORK_TIMES, Goal, over_plain
from report.records import Record, median_ms, ratio, rows
from report.tables import network_table

COMPARED = {NAIVE_C: "x naive C", NAIVE_1: "x naive 1", COMPILED: "x compiled", HYBRID: "x hybrid"}
HOST_BOUND = 0.9  # of a call's time spent by the host issuing it: the GPU waited


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
        ms = "/".join(f"{median_ms(pair[d], ours):.3f}{'*' if waiting[d] else ''}" for d in pair)
        line = f"{layer:<9}{mask:<11}{dtype:<10}{ours:<10}{ms:>15}"
        if known:
            rate = cell(lambda r, o=ours: operations(r) / median_ms(r, o) / 1e9, ".1f")
            share = cell(lambda r, o=ours: floor_ms(r, known) / median_ms(r, o), ".0%")
            line += f"{rate:>13}{share:>11}"
        else:
            line += f"{'-':>13}{'-':>11}"
        line += f"{cell(lambda r, o=ours: over_plain(r, o), '.2f'):>12}"
        for form in COMPARED:
            line += f"{cell(lambda r, f=form, o=ours: ratio(r, f, o), '.2f'):>12}"
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
    for goal in GPU:
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
                times = ratio(record, naive, ours)
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
            for r, ours in rows(content["records"])
            if (value := ratio(r, form, ours)) is not None and value < 1
        ]
        lines.append(f"slower than {form}: {'; '.join(cases) or 'none'}")
    return lines


def _goal_rows(goal: Goal, direction: str, records: list[Record]) -> Iterator[str]:
    kinds: dict[tuple[str, str, str], dict[str, float]] = {}
    for record, ours in rows(records):
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
    for record, ours in rows(records):
        key = (record["layer"], record["mask"], record["dtype"], ours)
        pairs.setdefault(key, {})[record["direction"]] = record
    return pairs


def _host_bound(record: Record, ours: str) -> bool:
    issuing = record["forms"][ours].get("host_ms", 0.0)
    return issuing >= HOST_BOUND * median_ms(record, ours)


def text(content: dict[str, Any]) -> str:
    """Layers first and goals last, so that the end of a log holds what was to be reached."""
    missing = {
        f"{r['layer']} {r['dtype']} {r['mask']}: {form} is missing: {why}"
        for r in content["records"]
        for form, why in r["missing"].items()
    }
    return "\n".join(
        [
            *network_table(content["networks"]),
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
