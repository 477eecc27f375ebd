"""The tests, those that matter most first, in several processes that end in time: `benchmarks/gpu.sh test`.

Each process has a share of the tests, and writes every outcome when it knows it, so that there is a report of
all that ran whenever and however it ends. Exit code 0 where every test ran and none failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from gpu.stages import write_json
from measure.machine import ROOT, machine

#: Every operator once; what only a GPU shows; kernels; operators; what is built on them. Then the others.
FIRST = (
    "operators/test_every_operator",
    *(f"backends/test_{name}" for name in ("gpu", "gpu_kernels", "cuda")),
    *(f"backends/test_cuda_few_{name}" for name in ("inputs", "outputs")),
    *(f"backends/test_cuda_few_{name}_gradients" for name in ("inputs", "outputs")),
    *(f"operators/test_{name}" for name in ("partial_conv2d", "msfef", "upcat_partial_conv2d")),
    *("modules/test_modules", "dispatcher/test_dispatcher", "operators/test_determinism"),
    *("inpainting/test_model", "operators/test_reference", "backends/test_backends"),
)
#: Of what stands in for a GPU, of training and evaluation, of what pinned compilers make, of this file.
ELSEWHERE = (
    "emulator/",
    "inpainting/",
    "machine_code/",
    "tooling/test_gpu_test_driver",
    "tooling/test_learning",
)
ENDED = {0, 1, 5}  # exit codes of pytest that went through its share, 5 where the share was empty


class Process(NamedTuple):
    """A pytest process and its files."""

    running: subprocess.Popen[bytes]
    outcomes: Path
    output: Path


def test_files() -> list[str]:
    """All that need no more than the operators and the network, in the order of `FIRST`."""
    tests = ROOT / "tests"
    found = sorted(str(file.relative_to(tests).with_suffix("")) for file in tests.rglob("test_*.py"))
    others = [name for name in found if name not in FIRST and not name.startswith(ELSEWHERE)]
    return [f"tests/{name}.py" for name in (*FIRST, *others)]


def start(index: int, count: int, files: list[str], options: list[str], results: Path) -> Process:
    """Process `index` of `count`; its files lie beside `results`."""

    def beside(suffix: str) -> Path:
        path = results.with_name(f"{results.stem}-{index}{suffix}")
        path.unlink(missing_ok=True)
        return path

    outcomes, output, junit = beside(".jsonl"), beside(".log"), beside(".xml")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "",
        f"--share={index}/{count}",
        f"--outcomes={outcomes}",
    ]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    with output.open("wb") as log:
        running = subprocess.Popen(
            [*command, f"--junitxml={junit}", *options, *files],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": threads, **os.environ},
            start_new_session=True,
        )
    return Process(running, outcomes, output)


def wait(processes: list[Process], until: float) -> bool:
    """Whether all have ended by then."""
    while any(process.running.poll() is None for process in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def end(processes: list[Process], grace: float) -> None:
    """Interrupt those that still run, so that pytest writes its summary; after `grace` seconds kill them."""
    for process in processes:
        if process.running.poll() is None:
            process.running.send_signal(signal.SIGINT)
    wait(processes, time.monotonic() + grace)
    for process in processes:
        if process.running.poll() is None:
            os.killpg(process.running.pid, signal.SIGKILL)  # and the compilers it started
            process.running.wait()


def report(process: Process) -> dict[str, Any]:
    """What a process found until it ended."""
    lines = process.outcomes.read_text().splitlines() if process.outcomes.exists() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:  # the last, of a process that was killed
            break
    ended = {entry["test"]: entry for entry in entries if "test" in entry and entry["outcome"] != "failed"}
    ended |= {entry["test"]: entry for entry in entries if entry.get("outcome") == "failed"}  # in any phase
    started = [entry["started"] for entry in entries if "started" in entry]
    return {
        "exit code": process.running.returncode,
        "selected": next((entry["selected"] for entry in entries if "selected" in entry), None),
        "running at the end": [test for test in started[-1:] if test not in ended],
        "tests": ended,
    }


def summary(parts: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Of all processes."""
    tests = {name: entry for part in parts for name, entry in part["tests"].items()}
    by_seconds = sorted(tests.values(), key=lambda entry: -entry["seconds"])
    known = [part["selected"] for part in parts if part["selected"] is not None]
    return {
        "seconds": round(seconds, 1),
        "complete": all(part["exit code"] in ENDED for part in parts),
        "processes": [{key: part[key] for key in part if key != "tests"} for part in parts],
        "outcomes": dict(Counter(entry["outcome"] for entry in tests.values())),
        "not run": sum(known) - len(tests),
        "running at the end": [test for part in parts for test in part["running at the end"]],
        "failed": {name: entry["text"] for name, entry in tests.items() if entry["outcome"] == "failed"},
        "skipped": dict(
            Counter(entry["text"] for entry in tests.values() if entry["outcome"] == "skipped").most_common()
        ),
        "slowest": {entry["test"]: entry["seconds"] for entry in by_seconds[:20]},
    }


def show(found: dict[str, Any]) -> None:
    for test, text in found["failed"].items():
        lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
        print(f"FAILED {test}: {lines[0] if lines else text.strip()[-200:]}"[:300])
    for test in found["running at the end"]:
        print(f"RUNNING at the end: {test}")
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in found["outcomes"].items())
    codes = [process["exit code"] for process in found["processes"]]
    counts = f"{outcomes or 'nothing ran'}, {found['not run']} not run"
    print(f"{counts}, in {found['seconds']} s; exit codes {codes}")


def stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Other options are pytest's."
    parser.set_defaults(others=[])
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds until it interrupts the tests")
    parser.add_argument("--grace", type=float, default=25.0, help="seconds until it kills them after that")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--files", nargs="+", default=test_files(), metavar="FILE", help="instead of all")
    parser.add_argument("--results", type=Path, required=True, metavar="PATH", help="JSON file")


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    results = options.results.resolve()
    results.parent.mkdir(parents=True, exist_ok=True)

    here = machine("cuda" if torch.cuda.is_available() else "cpu")  # afterwards the GPU may be lost
    began = time.monotonic()
    signal.signal(signal.SIGTERM, stop)
    processes: list[Process] = []
    try:
        for index in range(options.processes):
            processes.append(start(index, options.processes, options.files, options.others, results))
        wait(processes, began + options.deadline)
    except KeyboardInterrupt:
        print("interrupted")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows is short
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end(processes, options.grace)
    parts = [report(process) for process in processes]
    found = summary(parts, time.monotonic() - began)
    write_json(results, {"machine": here, **found})
    for process, part in zip(processes, parts, strict=True):
        if part["exit code"] not in ENDED:
            print(f"--- the end of {process.output}")
            print(process.output.read_text(errors="replace")[-2000:])
    show(found)
    good = found["complete"] and found["outcomes"].get("passed") and not found["failed"]
    raise SystemExit(0 if good else 1)
