"""Plots of a run, as SVG."""

from __future__ import annotations

from names import COMPILED, FORWARD, NAIVE_1, NAIVE_C, PLAIN, TRAINING
from report import svg
from report.records import Record, median_ms, ratio


def speedup_plot(records: list[Record]) -> str:
    """Bars for each MSFEF layer under the rectangle: times faster than the naive forms."""
    panels = []
    for direction in (FORWARD, TRAINING):
        wanted = {"operator": "msfef", "mask": "rectangle", "sweep": "", "direction": direction}
        chosen = [record for record in records if all(record[k] == v for k, v in wanted.items())]
        bars: dict[str, list[float | None]] = {}
        for form in (NAIVE_C, NAIVE_1, COMPILED, PLAIN):
            values = [ratio(record, form, record["ours"][0]) for record in chosen]
            if any(values):
                bars[f"than {form}"] = values
        panels.append(svg.Bars(f"MSFEF, {direction}: times faster", [r["layer"] for r in chosen], bars))
    return svg.figure(panels)


def sweep_plot(records: list[Record]) -> str:
    """Time of each form over batch, resolution and hole ratio, forward + backward."""
    panels = []
    labels = {
        "batch": "batch",
        "resolution": "side of the image",
        "hole ratio": "hole ratio of the layer's input",
    }
    for axis, label in labels.items():
        chosen = [r for r in records if r["sweep"] == axis and r["direction"] == TRAINING]
        lines: dict[str, list[tuple[float, float]]] = {}
        for record in chosen:
            x = record["hole_ratio"][0] if axis == "hole ratio" else record[axis]
            for form in record["forms"]:
                lines.setdefault(form, []).append((x, median_ms(record, form)))
        layer = chosen[0]["layer"] if chosen else ""
        panels.append(svg.Lines(f"{layer}, {TRAINING}: ms by {axis}", label, lines))
    return svg.figure(panels)
