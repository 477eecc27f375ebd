"""compute-sanitizer over all operators, forward and backward, small: `benchmarks/gpu.sh sanitize`.

Exit code 1 where it finds something; 0 also without the tool, or where the machine refuses it, which is said.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from gpu.stages import Deadline, find_tool, require_gpu, run_limited, this_command, write_json
from measure.case import DTYPES
from measure.forms import our_backends, ours
from measure.machine import machine
from measure.problems import build_problem
from names import GPU_BACKENDS
from operators import OPERATORS

LAYERS_RUN = [layer for operator in OPERATORS.values() for layer in operator.kernels]
SIZE = 72  # maps of 36, 18, 9, 5, 3, ... pixels: no multiple of a tile, and odd skips
# Failing calls of the CUDA API are torch's to handle, and some of its probing fails by design.
TOOLS = {"memcheck": ["--report-api-errors", "no"], "racecheck": [], "initcheck": []}
FINISHED = "sanitize: all operators ran"
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
FOUND = re.compile(
    r"Invalid __|Misaligned|Race reported|hazard at|Uninitialized __|Out-of-range|Barrier error"
)
# One allocation for each tensor, so that reading past its end is past the end of an allocation.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def run_operators() -> None:
    for mask in ("irregular", "none"):
        for layer in LAYERS_RUN:
            # On the CPU, so that the tools watch few kernels that are not ours.
            problem = build_problem(layer.name, mask, 2, SIZE, "cpu")
            for dtype in ("bfloat16", "float32"):
                for backend in our_backends("cuda"):
                    here = problem.to("cuda", DTYPES[dtype], channels_last=True)
                    out, _ = ours(here, backend).run()
                    out.backward(torch.ones_like(out))
                    torch.cuda.synchronize()
                    print(f"{layer.name} {layer.operator} {mask} {dtype} {backend}", flush=True)
    print(FINISHED, flush=True)


def verdict(code: int | None, output: str, seconds: float) -> tuple[str, bool]:
    """In words, and whether something is wrong with the kernels."""
    found = len(FOUND.findall(output))
    if code is None:
        return f"stopped after {seconds:.0f} s, {found} findings until then", found > 0
    errors = sum(int(number) for number in SUMMARY.findall(output))
    if found or (errors and FINISHED in output):
        return f"{errors} errors, exit code {code}", True
    if FINISHED not in output:  # though they all ran without the tool
        told = re.search(r"={9} (?:Error|.*not supported|.*[Ii]nternal).*", output)
        return f"refused by this machine: {told[0] if told else f'exit code {code}'}", False
    return "no errors", False


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="run the operators, for a tool from outside")
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds for all of it")
    parser.add_argument("--results", type=Path, metavar="PATH", help="JSON file; the logs go beside it")


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.once:
        run_operators()
        return
    deadline = Deadline(options.deadline)
    require_gpu()
    if not set(our_backends("cuda")) & set(GPU_BACKENDS):
        print("no compiled backend for the GPU: nothing to check")
        return
    this = [*this_command("sanitize"), "--once"]
    code, output = run_limited(this, deadline.left, ENVIRONMENT)  # fills Triton's cache for the tools, too
    print(output, end="")
    if code != 0:
        raise SystemExit(f"the operators fail without any tool, exit code {code}")
    tool = find_tool("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not installed: nothing checked")
        return
    content: dict[str, Any] = {"machine": machine("cuda"), "tools": {}}
    any_wrong = False
    for i, (name, settings) in enumerate(TOOLS.items()):
        share = deadline.left / (len(TOOLS) - i)
        command = [tool, "--tool", name, *settings, "--print-limit", "20", "--error-exitcode", "86", *this]
        code, output = run_limited(command, share, ENVIRONMENT)
        said, wrong = verdict(code, output, share)
        any_wrong |= wrong
        content["tools"][name] = said
        if options.results:
            options.results.with_name(f"{options.results.stem}-{name}.log").write_text(output)
            write_json(options.results, content)
        if wrong:
            print("\n".join(line for line in output.splitlines() if line.startswith("====="))[:4000])
        print(f"{name}: {said}", flush=True)
    raise SystemExit(1 if any_wrong else 0)
