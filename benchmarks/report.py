"""Tables and plots from a run's JSON: `python benchmarks/report.py [JSON] [--readme FILE] [--plots FOLDER]`.

Without options it prints the Markdown table. `--readme` puts its lines for the rectangle between the two
`<!-- benchmarks -->` marks of a file; `--plots` writes `speedup.svg` and, of a run with --full, `sweeps.svg`.
Both refuse a run at uncommitted changes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import svg
from names import COMPILED, DIRTY, FORWARD, NAIVE_1, NAIVE_C, PLAIN, TRAINING, UNKNOWN

Record = dict[str, Any]
NAIVE = {NAIVE_C: "x naive C", NAIVE_1: "x naive 1", COMPILED: "x compiled"}
MARK, NETWORK_MARK = "<!-- benchmarks -->", "<!-- network -->"


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
    """Interquartile range over median of the ratio to the plain convolution: how far its rounds disagree."""
    values = ratios(record, ours, PLAIN)
    if len(values) < 2:
        return 0.0
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / median


def peak_mb(record: Record, form: str) -> float | None:
    """Peak memory above inputs and parameters without tensors as large as the weights; None if not taken."""
    peak = record["forms"].get(form, {}).get("peak_mb")
    return peak["other"] if peak else None


def rows(records: list[Record]) -> list[tuple[Record, str]]:
    """Each record once for each of our backends in it."""
    return [(record, ours) for record in records for ours in record["ours"]]


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


def put_between(parser: argparse.ArgumentParser, readme: Path, mark: str, text: str) -> None:
    """Replace what stands between the two lines `mark`."""
    before, first, rest = readme.read_text().partition(mark)
    _, second, after = rest.partition(mark)
    if not (first and second):
        parser.error(f"{readme} has no two lines {mark!r} to put the table between")
    readme.write_text(f"{before}{mark}\n{text}{mark}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent / "results" / "latest.json"
    parser.add_argument("results", nargs="?", type=Path, default=default)
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--plots", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    content = json.loads(options.results.read_text())
    records = content["records"]
    networks = content.get("networks", [])
    if (options.readme or options.plots) and unfit(content["machine"]):
        parser.error(unfit(content["machine"]))
    if options.readme and records:
        table = markdown(content["machine"], [r for r in records if r["mask"] == "rectangle"])
        put_between(parser, options.readme, MARK, table)
    if options.readme and networks:
        lines = [f"{where(content['machine'])}.", "", *network_table(networks)]
        put_between(parser, options.readme, NETWORK_MARK, "\n".join(lines) + "\n")
    if options.plots and records:
        options.plots.mkdir(parents=True, exist_ok=True)
        (options.plots / "speedup.svg").write_text(speedup_plot(records))
        if any(record["sweep"] for record in records):
            (options.plots / "sweeps.svg").write_text(sweep_plot(records))
    if not (options.readme or options.plots):
        print(markdown(content["machine"], records), end="")


if __name__ == "__main__":
    main()
