"""The goals beside what was measured: of a run, or of what is measured now on the CPU.

With RUN, the JSON file of a run, the verdicts on it; on a GPU's with its layers beside their floors. Without
it the layers and a training step of the network are measured: forward under no_grad, gradients cleared
between repeats, x needs one except in layer 1, medians of interleaved rounds. Exit code 1 where a goal of the
CPU is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from measure import training_step
from measure.case import Case, Settings, measure
from measure.machine import machine
from operators import LAYERS
from report import gpu_run
from report.goals import CPU, CPU_AVX2, DIRECTIONS, NETWORK, Goal
from report.records import Record, case_of, where
from report.tables import network_table, text_table

#: What keeps our kernels, torch's and oneDNN's, which has its convolutions, to AVX2.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


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


def verdicts(goals: Sequence[Goal], record: Record) -> Iterator[Verdict]:
    """One on each goal that is of the record's case."""
    layer, direction = case_of(record)
    for goal in goals:
        if goal.is_of(record):
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


def summary(found: Sequence[Verdict]) -> tuple[str, int]:
    """The last line, and the exit code."""
    missed = sum(not verdict.reached for verdict in found)
    return f"{len(found) - missed} of {len(found)} goals reached", 1 if missed else 0


def new_records(goals: Sequence[Goal], only: str, seconds: float) -> Iterator[Record]:
    """Of each case that has a goal and whose name contains `only`, as it is measured."""
    settings = Settings(min_rounds=7, max_rounds=100, seconds=seconds)
    wanted = {name for goal in goals for name in goal.layers if only in name}
    for layer in LAYERS:
        if layer in wanted:
            for direction in DIRECTIONS:
                yield measure(Case(layer, "quarter", direction), settings)[0]
    if NETWORK in wanted:
        yield training_step.measure(training_step.Case(), replace(settings, min_rounds=5))[0]


def stored_records(content: dict[str, Any]) -> list[Record]:
    """Of a run, the network's last."""
    layers = [record for record in content["records"] if not record["sweep"]]
    return [*layers, *content.get("networks", [])]


def require_avx2() -> None:
    """Starts this command again, in a process that has AVX2 at most, unless this is one."""
    if any(os.environ.get(name) != value for name, value in AVX2.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **AVX2})


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="JSON file; without it measures")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="layers whose name contains this, e.g. msfef; or network"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of rounds, for each layer and direction")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, metavar="PATH", help="write the samples as JSON")
    parser.add_argument(
        "--avx2", action="store_true", help="the goals of processors without AVX-512, measured with AVX2"
    )


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    content = json.loads(options.run.read_text()) if options.run else {}
    if "ceilings" in content:
        print(gpu_run.text(content))
        return
    if options.avx2 and not content:
        require_avx2()
    torch.set_num_threads(options.threads)
    here = content.get("machine") or machine("cpu")
    if options.avx2 and here["cpu_capability"] != "AVX2":
        parser.error(f"--avx2 is about AVX2, this is {here['cpu_capability']}")
    goals = CPU_AVX2 if options.avx2 else CPU
    print(where(here), flush=True)
    records, found = [], []
    for record in stored_records(content) if content else new_records(goals, options.only, options.seconds):
        records.append(record)
        for verdict in verdicts(goals, record):
            found.append(verdict)
            print(verdict, flush=True)
    networks = [record for record in records if "width" in record]
    layers = [record for record in records if "width" not in record]
    tables = (text_table(layers) if layers else [], network_table(networks) if networks else [])
    print("\n".join(line for table in tables if table for line in ("", *table)))
    if options.results:
        written = {"machine": here, "records": layers, "networks": networks}
        options.results.write_text(json.dumps(written, indent=1) + "\n")
    last, code = summary(found)
    print(last)
    raise SystemExit(code)
