"""Tables and plots from a run's JSON.

Without options it prints the Markdown table. `--readme` puts its lines for the rectangle between the two
`<!-- benchmarks -->` marks of a file; `--plots` writes `speedup.svg` and, of a run with --full, `sweeps.svg`.
Both refuse a run at uncommitted changes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from report.plots import speedup_plot, sweep_plot
from report.records import unfit, where
from report.tables import markdown, network_table

LATEST = Path(__file__).resolve().parents[1] / "results" / "latest.json"
MARK, NETWORK_MARK = "<!-- benchmarks -->", "<!-- network -->"


def put_between(parser: argparse.ArgumentParser, readme: Path, mark: str, text: str) -> None:
    """Replace what stands between the two lines `mark`."""
    before, first, rest = readme.read_text().partition(mark)
    _, second, after = rest.partition(mark)
    if not (first and second):
        parser.error(f"{readme} has no two lines {mark!r} to put the table between")
    readme.write_text(f"{before}{mark}\n{text}{mark}{after}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", type=Path, default=LATEST, metavar="RUN", help="JSON file (%(default)s)"
    )
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--plots", type=Path, metavar="FOLDER")


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    content = json.loads(options.run.read_text())
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
