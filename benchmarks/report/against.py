"""This version against an earlier commit on the CPU: the time of each layer over the plain convolution.

The commit is built beside this version, once. Of both in turn (old, new, new, old, ...) a short process times
ours and the plain convolution, interleaved, on the same inputs: the layer's own with a hole of a quarter of
each side. Ratios are medians of a process's rounds; new/old is the median over pairs of processes, and spread
is their quartile range. Environment variables such as ATEN_CPU_CAPABILITY hold for both. Exit code 1 where a
limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import pconv_ext
from measure.case import DTYPES
from measure.earlier import Unavailable, built, full_hash
from measure.inputs import IMAGE_SIZE
from measure.machine import machine
from measure.problems import build_problem
from measure.sample import write_problem
from names import PLAIN
from operators import LAYERS
from report.goals import against
from report.records import Record, earlier_ratios, ratio, spread_of, where
from report.verdicts import Verdict, summary, verdicts

BENCHMARKS = Path(__file__).resolve().parents[1]
HEAD = f"{'case':<28}{'old':>8}{'new':>8}{'new/old':>9}{'spread':>8}"
VERSIONS = ("old", "new")

#: Of a version the records of one process, one for each direction.
Sample = Callable[[str], list[Record]]


def layers_of(only: Sequence[str]) -> list[str]:
    """Those whose name contains any of `only`; all where it is empty.

    Raises:
        ValueError: one of them is in no name.
    """
    unknown = [part for part in only if not any(part in name for name in LAYERS)]
    if unknown:
        raise ValueError(f"no layer has {', '.join(unknown)} in its name: {', '.join(LAYERS)}")
    return [name for name in LAYERS if not only or any(part in name for part in only)]


def turns(rounds: int) -> list[tuple[str, str]]:
    """Who comes first in each round, in turn: what drifts is then no version's advantage."""
    return [VERSIONS if number % 2 == 0 else VERSIONS[::-1] for number in range(rounds)]


def compare(sample: Sample, rounds: int) -> list[Record]:
    """For each direction both versions' times over the plain convolution, round by round, and all samples."""
    processes: dict[str, list[list[Record]]] = {version: [] for version in VERSIONS}
    for order in turns(rounds):
        for version in order:
            processes[version].append(sample(version))
    records = []
    for number, first in enumerate(processes["new"][0]):
        of = {version: [records[number] for records in processes[version]] for version in VERSIONS}
        over = {version: [ratio(one, one["ours"][0], PLAIN) for one in of[version]] for version in VERSIONS}
        records.append({key: first[key] for key in ("layer", "direction", "ours")} | over | {"processes": of})
    return records


def line(record: Record, verdict: Verdict) -> str:
    """Of the table under `HEAD`."""
    old, new = (statistics.median(record[version]) for version in VERSIONS)
    spread = spread_of(sorted(earlier_ratios(record)))
    bound, reached = f"<= {verdict.bar:.2f}", "ok" if verdict.reached else "MISSED"
    numbers = f"{old:>8.3f}{new:>8.3f}{verdict.value:>9.3f}{spread:>8.1%}"
    return f"{verdict.case:<28}{numbers}  {bound:<9}{reached:<8}{verdict.note}".rstrip()


def sample_in_process(problem: Path, seconds: float, threads: int, earlier: Path) -> Sample:
    """Starts processes of either version; `earlier` is the folder with the package of the old one."""
    path = os.environ.get("PYTHONPATH")
    paths = {"old": os.pathsep.join([str(earlier), path] if path else [str(earlier)]), "new": path}
    packages = {"old": earlier / "pconv_ext", "new": Path(pconv_ext.__file__).parent}
    command = [sys.executable, str(BENCHMARKS), "sample", str(problem)]
    command += ["--seconds", str(seconds), "--threads", str(threads)]

    def sample(version: str) -> list[Record]:
        environment = {**os.environ, "PYTHONPATH": paths[version] or ""}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"the {version} version failed on {problem.stem}, as said above")
        records: list[Record] = json.loads(done.stdout.splitlines()[-1])
        for record in records:
            if Path(record.pop("package")).resolve() != packages[version].resolve():
                raise SystemExit(f"{packages[version]} was to be measured, not another pconv_ext")
        return records

    return sample


def measured(earlier: Path, options: argparse.Namespace) -> Iterator[Record]:
    """Of each layer and direction, as they are measured."""
    for name in layers_of(options.only):
        problem = build_problem(name, options.mask, options.batch, IMAGE_SIZE, "cpu")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{name}.pt")
            write_problem(problem.to("cpu", DTYPES[options.dtype]), file)
            sample = sample_in_process(file, options.seconds, options.threads, earlier)
            yield from compare(sample, options.rounds)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return number


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("commit", metavar="COMMIT", help="whatever names it to git")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="layers whose name contains one of these"
    )
    parser.add_argument("--rounds", type=positive, default=6, help="processes of each version for a layer")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing in a process, each direction")
    parser.add_argument("--mask", default="quarter", help="or none, rectangle, irregular: of all the network")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--batch", type=positive, default=4)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--results", type=Path, metavar="PATH", help="write all samples as JSON")


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    try:
        layers_of(options.only)
        commit = full_hash(options.commit)
        earlier = built(commit)
    except (ValueError, Unavailable) as error:
        parser.error(str(error))
    torch.set_num_threads(options.threads)
    here = machine("cpu")
    print(f"{where(here)}; against {commit[:12]}\n{HEAD}", flush=True)
    records: list[Record] = []
    found: list[Verdict] = []
    for record in measured(earlier, options):
        records.append(record)
        for verdict in verdicts(against(commit), record):
            found.append(verdict)
            print(line(record, verdict), flush=True)
    print("old, new: time over the plain convolution; spread: quartile range of new/old over the rounds")
    if options.results:
        asked: dict[str, Any] = {
            name: getattr(options, name) for name in ("rounds", "seconds", "mask", "dtype", "batch")
        }
        content = {"machine": here, "against": commit, **asked, "records": records}
        options.results.write_text(json.dumps(content, indent=1) + "\n")
    last, code = summary(found)
    print(last)
    raise SystemExit(code)
