"""Tables of a run: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from names import COMPILED, FORWARD, NAIVE_1, NAIVE_C, PLAIN, TRAINING
from report.records import Record, median_ms, peak_mb, ratio, rows, spread, where

NAIVE = {NAIVE_C: "x naive C", NAIVE_1: "x naive 1", COMPILED: "x compiled"}


def text_table(records: list[Record]) -> list[str]:
    """Lines for a terminal: how many times faster than a form (x), our time over the plain one's (/)."""
    head = f"{'case':<42}{'ours':>10}{'ms':>9}" + "".join(f"{name:>12}" for name in NAIVE.values())
    lines = [f"{head}{'/ plain':>9}{'spread':>8}   MB: ours, naive C, naive 1"]
    slower = []
    for record, ours in rows(records):
        case = f"{record['layer']} {record['mask']} {record['direction']}"
        if record["sweep"]:
            case += f" {record['batch']}x{record['resolution']}px"
        line = f"{case:<42}{ours:>10}{median_ms(record, ours):>9.2f}"
        for form in NAIVE:
            value = ratio(record, form, ours)
            line += f"{'-' if value is None else f'{value:.2f}':>12}"
        line += f"{ratio(record, ours, PLAIN) or 0:>9.2f}{spread(record, ours):>8.0%}   "
        peaks = [peak_mb(record, form) for form in (ours, NAIVE_C, NAIVE_1)]
        lines.append(line + ", ".join("-" if peak is None else f"{peak:.1f}" for peak in peaks))
        if (ratio(record, NAIVE_1, ours) or 1) < 1:
            slower.append(f"{case} ({ours})")
    lines.append("spread: quartile range of the last ratio; MB: peak without weight-sized tensors")
    lines += sorted({f"{form} is missing: {why}" for r in records for form, why in r["missing"].items()})
    lines.append("slower than the naive 1-channel form: " + ("; ".join(slower) or "none"))
    return lines


def network_table(networks: list[Record]) -> list[str]:
    """A Markdown table: time and peak memory of a training step in each form, and over ours."""
    lines = ["| network, batch | form | ms | over ours | peak MB | over ours |", "|---|---|---|---|---|---|"]
    for record in networks:
        ours = record["ours"][0]
        size = f"{record['resolution']}x{record['resolution']}"
        what = f"width {record['width']}, {record['batch']} of {size}, {record['dtype']}"
        for name, form in record["forms"].items():
            times = ratio(record, name, ours)
            memory = form["peak_mb"] / record["forms"][ours]["peak_mb"]
            lines.append(
                f"| {what} | {name} | {median_ms(record, name):.0f} | {times:.2f} | {form['peak_mb']:.0f} "
                f"| {memory:.2f} |"
            )
        lines += [f"| {what} | {name} | missing: {why} | | | |" for name, why in record["missing"].items()]
    return lines


def markdown(machine: dict[str, Any], records: list[Record]) -> str:
    """One line for each layer, mask and backend; a cell holds forward / forward + backward."""
    kinds = sorted({f"batch {r['batch']}, {r['dtype']}" for r in records if not r["sweep"]})
    lines = [
        f"{where(machine)}; {'; '.join(kinds)}. "
        "Each cell: forward / forward + backward. Times are medians, ratios medians over interleaved rounds.",
        "",
        "| layer | hole | backend | ms | faster than naive, C-channel mask | than naive, 1-channel mask "
        "| than the latter compiled | time over one plain convolution "
        "| peak MB: ours | C-channel | 1-channel |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines_of: dict[tuple[str, str, str], dict[str, Record]] = {}
    for record, ours in rows([r for r in records if not r["sweep"]]):
        lines_of.setdefault((record["layer"], record["mask"], ours), {})[record["direction"]] = record

    for (layer, mask, ours), pair in lines_of.items():

        def cell(value: Callable[[Record], float | None], unit: str, pair: dict[str, Record] = pair) -> str:
            values = [value(pair[direction]) for direction in (FORWARD, TRAINING) if direction in pair]
            return " / ".join("-" if v is None else format(v, unit) for v in values)

        cells = [layer, mask, ours, cell(lambda r, ours=ours: median_ms(r, ours), ".1f")]
        for form in NAIVE:
            cells.append(cell(lambda r, form=form, ours=ours: ratio(r, form, ours), ".1f"))
        cells.append(cell(lambda r, ours=ours: ratio(r, ours, PLAIN), ".2f"))
        for form in (ours, NAIVE_C, NAIVE_1):
            cells.append(cell(lambda r, form=form: peak_mb(r, form), ".0f"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
