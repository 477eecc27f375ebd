"""The goals beside what was measured: of a run, or of layers measured now on the CPU.

With RUN, the JSON file of a run, the verdicts on it; on a GPU's with its layers beside their floors. Without
it the layers are measured: forward under no_grad, gradients cleared between repeats, x needs one except in
layer 1, medians of interleaved rounds. Exit code 1 where a goal of the CPU is missed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from measure.case import Case, Settings, measure
from measure.machine import machine
from operators import LAYERS
from report import gpu_run
from report.goals import CPU, DIRECTIONS
from report.records import Record
from report.tables import text_table


@dataclass(frozen=True)
class Verdict:
    """One number beside its bar."""

    case: str
    what: str
    value: float
    bar: float
    at_most: bool
    reached: bool
    note: str = ""

    def __str__(self) -> str:
        bound = f"{'<=' if self.at_most else '>='} {self.bar:.2f}"
        reached = "ok" if self.reached else "MISSED"
        return f"{self.case:<28}{self.what:<36}{self.value:>8.2f}  {bound:<10}{reached:<8}{self.note}"


def cpu_verdicts(record: Record) -> Iterator[Verdict]:
    """One of each goal that is the record's layer's."""
    layer, direction = record["layer"], record["direction"]
    for goal in CPU:
        if layer in goal.layers and direction in goal.bars:
            value = goal.value(record, record["ours"][0])
            value = math.nan if value is None else value  # which misses
            yield Verdict(
                f"{layer} {direction}",
                goal.what,
                value,
                goal.of(goal.bars, direction, layer),
                goal.at_most,
                goal.reached(direction, layer, value),
                f"aim {goal.of(goal.aims, direction, layer)}" if direction in goal.aims else "",
            )


def new_records(only: str, seconds: float) -> Iterator[Record]:
    """Of each layer whose name contains `only`, as it is measured."""
    settings = Settings(min_rounds=7, max_rounds=100, seconds=seconds)
    for layer in LAYERS:
        if only in layer:
            for direction in DIRECTIONS:
                yield measure(Case(layer, "quarter", direction), settings)[0]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="JSON file; without it measures")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="layers whose name contains this, e.g. msfef"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of rounds, for each layer and direction")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, metavar="PATH", help="write the samples as JSON")


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    content = json.loads(options.run.read_text()) if options.run else {}
    if "ceilings" in content:
        print(gpu_run.text(content))
        return
    torch.set_num_threads(options.threads)
    records, verdicts = [], []
    stored = [record for record in content.get("records", []) if not record["sweep"]]
    for record in stored or new_records(options.only, options.seconds):
        records.append(record)
        for verdict in cpu_verdicts(record):
            verdicts.append(verdict)
            print(verdict, flush=True)
    print("\n".join(["", *text_table(records)]))
    if options.results:
        options.results.write_text(
            json.dumps({"machine": machine("cpu"), "records": records}, indent=1) + "\n"
        )
    missed = sum(not verdict.reached for verdict in verdicts)
    print(f"{len(verdicts) - missed} of {len(verdicts)} goals reached")
    raise SystemExit(1 if missed else 0)
