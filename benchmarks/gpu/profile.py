"""Where the time of a layer goes, kernel by kernel: `benchmarks/gpu.sh profile`.

torch.profiler first, which reads no hardware counters: GPU time of each kernel, forward and backward. Then
Nsight Compute, where `ncu` is there and permitted: it runs this command again with `--once`, a single pass
between cudaProfilerStart and cudaProfilerStop.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu.stages import Deadline, find_tool, require_gpu, run_limited, this_command, write_json
from measure.case import DEFAULTS, DTYPES
from measure.forms import our_backends, ours
from measure.inputs import IMAGE_SIZE
from measure.machine import machine
from measure.problems import build_problem
from operators import LAYERS, OPERATORS

CASES = [layer.name for operator in OPERATORS.values() for layer in operator.quick]
CALLS = 5  # profiled by torch.profiler; times are their mean
WARM_UP = 3
METRICS = {
    "gpu__time_duration.sum": "ns",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": "tensor %",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2 %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "launch__registers_per_thread": "registers",
}


class Passes:
    """One layer through one backend, warmed up; forward and backward apart."""

    def __init__(self, layer: str, mask: str, dtype: str, backend: str) -> None:
        settings = DEFAULTS["cuda"]
        problem = build_problem(layer, mask, settings.batch, IMAGE_SIZE, "cuda")
        problem = problem.to("cuda", DTYPES[dtype], settings.channels_last)
        self.form = ours(problem, backend)
        self.grad_out = torch.randn_like(self.form.run()[0])
        for _ in range(WARM_UP):
            self.backward(self.forward())
        torch.cuda.synchronize()

    def forward(self) -> torch.Tensor:
        return self.form.run()[0]

    def backward(self, out: torch.Tensor) -> None:
        self.form.clear_gradients()
        out.backward(self.grad_out)


def kernel_times(run: Callable[[], object], calls: int) -> list[dict[str, Any]]:
    """What the GPU did in `run`, of `calls` calls: name, launches and microseconds a call, longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    launches: dict[str, int] = defaultdict(int)
    nanoseconds: dict[str, int] = defaultdict(int)
    for event in profiler.profiler.kineto_results.events():
        if event.device_type().name == "CUDA" and event.name() != "[memory]":
            launches[event.name()] += 1
            nanoseconds[event.name()] += event.duration_ns()
    longest = sorted(nanoseconds, key=lambda name: -nanoseconds[name])
    return [
        {"kernel": name, "launches": launches[name] / calls, "us": round(nanoseconds[name] / calls / 1e3, 2)}
        for name in longest
    ]


def profile_passes(passes: Passes) -> dict[str, list[dict[str, Any]]]:
    outputs: list[torch.Tensor] = []
    forward = kernel_times(lambda: outputs.extend(passes.forward() for _ in range(CALLS)), CALLS)

    def all_backward() -> None:
        for out in outputs:
            passes.backward(out)

    backward = kernel_times(all_backward, CALLS)
    return {"forward": forward, "backward": backward}


def once(passes: Passes) -> None:
    torch.cuda.profiler.start()
    passes.backward(passes.forward())
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def counters(ncu: str, arguments: Sequence[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """One row of `METRICS` for each kernel of forward and backward in turn, or none and the reason."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        command = [ncu, "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)]
        # The clocks stay as they are: the card may not be ours alone.
        command += ["--clock-control", "none", "--profile-from-start", "off", "--metrics", ",".join(METRICS)]
        code, output = run_limited([*command, *this_command("profile"), "--once", *arguments], seconds)
        lines = log.read_text().splitlines() if log.exists() else []
    rows = [row for row in csv.DictReader(line for line in lines if line.startswith('"')) if row["ID"]]
    if not rows:
        told = [line for line in [*lines, *output.splitlines()] if "ERROR" in line]
        ended = f"stopped after {seconds:.0f} s" if code is None else f"exit code {code}, no kernel profiled"
        return [], told[0] if told else ended
    return [
        {"kernel": row["Kernel Name"]}
        | {short: _number(row.get(metric, "")) for metric, short in METRICS.items()}
        for row in rows
    ], ""


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None  # n/a


def report_times(where: str, times: dict[str, list[dict[str, Any]]]) -> None:
    for direction, kernels in times.items():
        total = sum(kernel["us"] for kernel in kernels)
        print(f"{where} {direction}: {total:.1f} us in {sum(k['launches'] for k in kernels):.0f} launches")
        for kernel in kernels[:8]:
            print(f"{kernel['us']:>10.1f} us {kernel['launches']:>5.1f} x  {kernel['kernel'][:90]}")


def report_counters(where: str, rows: list[dict[str, Any]]) -> None:
    print(f"{where}\n{'us':>13}" + "".join(f"{name:>13}" for name in [*METRICS.values()][1:]))
    for row in rows:
        values = [row[name] for name in METRICS.values()]
        values[0] = None if values[0] is None else values[0] / 1e3
        print("".join(f"{'-' if v is None else f'{v:.1f}':>13}" for v in values) + f"  {row['kernel'][:70]}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", action="append", choices=LAYERS, help="several times for several layers")
    parser.add_argument("--mask", default="rectangle")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--backend", action="append", help="all that are available, if not given")
    parser.add_argument("--once", action="store_true", help="one pass of each for a profiler from outside")
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds for all of it")
    parser.add_argument("--results", type=Path, metavar="PATH", help="JSON file to write")


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    layers, backends = options.layer or CASES, options.backend or our_backends("cuda")
    deadline = Deadline(options.deadline)
    chosen = [(layer, backend) for layer in layers for backend in backends]
    if options.once:
        for layer, backend in chosen:
            once(Passes(layer, options.mask, options.dtype, backend))
        return
    require_gpu()
    content: dict[str, Any] = {"machine": machine("cuda"), "mask": options.mask, "dtype": options.dtype}
    content |= {"batch": DEFAULTS["cuda"].batch, "layers": [], "ncu": "used"}
    for layer, backend in chosen:
        times = profile_passes(Passes(layer, options.mask, options.dtype, backend))
        content["layers"].append({"layer": layer, "backend": backend, "us": times, "counters": []})
        report_times(f"{layer} {backend}", times)
        if not any(times.values()):
            print("torch.profiler saw no kernel: this machine does not let it trace the GPU")
        _save(options.results, content)
    ncu = find_tool("ncu")
    if ncu is None:
        content["ncu"] = "not found"
    for entry in content["layers"]:
        if content["ncu"] != "used":
            break
        arguments = ["--layer", entry["layer"], "--backend", entry["backend"]]
        arguments += ["--mask", options.mask, "--dtype", options.dtype]
        assert ncu
        entry["counters"], refusal = counters(ncu, arguments, min(120.0, deadline.left))
        if refusal:
            content["ncu"] = f"refused or failed at {entry['layer']}: {refusal}"
        else:
            report_counters(f"{entry['layer']} {entry['backend']}", entry["counters"])
        _save(options.results, content)
    _save(options.results, content)
    if content["ncu"] != "used":
        print(f"ncu: {content['ncu']}; the times above are torch.profiler's")


def _save(path: Path | None, content: dict[str, Any]) -> None:
    if path:
        write_json(path, content)
