"""The speed and memory to reach on a CPU: `python benchmarks/bars.py`, exit code 1 where one is missed.

Batch 4, float32, two threads, medians of interleaved rounds, a hole of a quarter of each side in the layer's
own input. Forward runs under no_grad, gradients are cleared between repeats, x needs one except in layer 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import report
import torch
from layers import MSFEF, PARTIAL_CONV, UPCAT
from names import FORWARD, NAIVE_1, NAIVE_C, PLAIN, TRAINING
from report import Record
from runner import Case, Settings, machine, measure

# For layers 1 to 4: times faster than the two naive forms, time over one plain 7x7 convolution (bar and aim).
FASTER_C = {FORWARD: (6.0, 2.7, 2.7, 2.2), TRAINING: (3.0, 1.7, 1.7, 1.4)}
FASTER_1 = {FORWARD: (5.0, 1.4, 1.4, 1.2), TRAINING: (2.0, 1.4, 1.4, 1.1)}
OVER_PLAIN = {FORWARD: (1.8, 1.35, 1.35, 1.5), TRAINING: (1.9, 1.3, 1.3, 1.5)}
AIM = {FORWARD: (1.4, 1.1, 1.1, 1.25), TRAINING: (1.6, 1.1, 1.1, 1.3)}
UPCAT_FASTER_C = 1.5


@dataclass(frozen=True)
class Verdict:
    """One number beside its bar."""

    case: str
    what: str
    value: float
    bar: float
    at_most: bool
    note: str = ""

    @property
    def reached(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def __str__(self) -> str:
        bound = f"{'<=' if self.at_most else '>='} {self.bar:.2f}"
        reached = "ok" if self.reached else "MISSED"
        return f"{self.case:<28}{self.what:<36}{self.value:>8.2f}  {bound:<10}{reached:<8}{self.note}"


def median_ratio(record: Record, numerator: str, denominator: str) -> float:
    return statistics.median(report.ratios(record, numerator, denominator))


def msfef_verdicts(record: Record) -> Iterator[Verdict]:
    ours, direction = record["ours"][0], record["direction"]
    case, i = f"{record['layer']} {direction}", int(record["layer"][-1]) - 1
    faster_c, faster_1 = median_ratio(record, NAIVE_C, ours), median_ratio(record, NAIVE_1, ours)
    yield Verdict(case, "faster than naive, C-channel mask", faster_c, FASTER_C[direction][i], False)
    yield Verdict(case, "faster than naive, 1-channel mask", faster_1, FASTER_1[direction][i], False)
    over, aim = median_ratio(record, ours, PLAIN), f"aim {AIM[direction][i]}"
    yield Verdict(case, "time over a plain 7x7 convolution", over, OVER_PLAIN[direction][i], True, aim)
    if direction == TRAINING:
        mine, naive_c, naive_1 = (report.peak_mb(record, form) for form in (ours, NAIVE_C, NAIVE_1))
        apart = f"and {record['forms'][ours]['peak_mb']['weights']:.1f} weight-sized"
        bar = min(naive_c / 2, naive_1) if i < 2 else naive_1
        yield Verdict(case, "peak MB", mine, bar, True, apart)


def upcat_verdicts(record: Record) -> Iterator[Verdict]:
    faster = median_ratio(record, NAIVE_C, record["ours"][0])
    yield Verdict(
        f"{record['layer']} {record['direction']}",
        "faster than naive, C-channel mask",
        faster,
        UPCAT_FASTER_C,
        False,
    )
    yield from naive_1_verdicts(record)


def naive_1_verdicts(record: Record) -> Iterator[Verdict]:
    faster = median_ratio(record, NAIVE_1, record["ours"][0])
    yield Verdict(
        f"{record['layer']} {record['direction']}", "faster than naive, 1-channel mask", faster, 1.0, False
    )


JUDGES: dict[str, Callable[[Record], Iterator[Verdict]]] = {
    "msfef": msfef_verdicts,
    "partial_conv2d": naive_1_verdicts,
    "upcat_partial_conv2d": upcat_verdicts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="NAME", help="layers whose name contains this, e.g. msfef"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of rounds, for each layer and direction")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, metavar="PATH", help="write the samples as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(min_rounds=7, max_rounds=100, seconds=options.seconds)
    records, verdicts = [], []
    for layer in [*MSFEF, *PARTIAL_CONV, *UPCAT]:
        if options.only not in layer.name:
            continue
        for direction in (FORWARD, TRAINING):
            record, _ = measure(Case(layer.name, "quarter", direction), settings)
            records.append(record)
            for verdict in JUDGES[layer.operator](record):
                verdicts.append(verdict)
                print(verdict, flush=True)
    print("\n".join(["", *report.text_table(records)]))
    if options.results:
        options.results.write_text(
            json.dumps({"machine": machine("cpu"), "records": records}, indent=1) + "\n"
        )
    missed = sum(not verdict.reached for verdict in verdicts)
    print(f"{len(verdicts) - missed} of {len(verdicts)} bars reached")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
