"""The network's layers at batch 32 on a GPU, beside every other form: `benchmarks/gpu.sh bench`.

What matters most comes first, so that a run stopped by its deadline has it: bfloat16 under the paper's
rectangles, with torch.compile; then tf32; then the other masks. The JSON file is rewritten after every layer.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpu.ceilings import ceilings
from gpu.stages import Deadline, TimeIsUp, require_gpu, write_json
from measure import training_step
from measure.case import DEFAULTS, Case, Settings, measure
from measure.machine import machine
from names import FORWARD, GPU_BACKENDS, TRAINING
from operators import LAYERS
from report import gpu_run
from report.records import median_ms
from report.tables import network_table

MASKS = ("rectangle", "none", "irregular")
# Layers of at most 64 pixels an image come last, and compiling them takes longer than it can tell.
SMALL = 8
COUNTED = {
    "samples_ms": "milliseconds a call between two CUDA events around as many calls as last 8 ms; the i-th "
    "samples of all forms belong to one round, and a ratio is the median of the rounds' own ratios",
    "host_ms": "milliseconds the host takes to issue one call",
    "peak_mb": "1e6 bytes during one call, above inputs, parameters and masks made before it, with the "
    "gradient from above; total: the rise of torch.cuda.max_memory_allocated; weights: the peak of tensors "
    "as large as one of the layer's kernels or several merged, in the features' dtype or float32; other: "
    "that of the rest, from torch's allocation events, what they miss of the total included",
    "error": "largest ||got - reference|| / ||reference|| of output and gradients, the reference in float64",
}


def plan(quick: bool) -> Iterable[tuple[str, Case]]:
    """(dtype, case), most wanted first; both directions of a case follow each other."""
    for mask in MASKS[:1] if quick else MASKS:
        for dtype in ("bfloat16", "float32"):
            first = mask == MASKS[0]
            for layer in sorted(LAYERS.values(), key=lambda layer: layer.out_size <= SMALL):
                compiled = first and dtype == "bfloat16" and layer.out_size > SMALL
                for direction in (FORWARD, TRAINING):
                    yield dtype, Case(layer.name, mask, direction, compiled, memory=first)


def run(
    cases: Iterable[tuple[str, Case]], settings: Settings, content: dict[str, Any], results: Path
) -> None:
    """Measures into `content`, written to `results` after every layer; a case that fails is noted there."""
    began = time.monotonic()
    for dtype, case in cases:
        try:
            record, _ = measure(case, replace(settings, dtype=dtype))
        except Exception as error:
            traceback.print_exc()
            content["failures"].append(f"{case} {dtype}: {' '.join(str(error).split())[:300]}")
            if settings.device == "cuda":
                torch.cuda.synchronize()  # raises where the failure took the GPU's context with it
            continue
        content["records"].append(record)
        for ours in record["ours"]:
            elapsed, ms = time.monotonic() - began, median_ms(record, ours)
            print(f"{elapsed:5.0f} s  {dtype:<9}{case!s:<44}{ours:<10}{ms:9.3f} ms", flush=True)
        if case.direction == TRAINING:
            write_json(results, content)


def run_network(settings: Settings, content: dict[str, Any]) -> None:
    """A training step of the whole network, first of all: it is what users wait for."""
    try:
        content["networks"].append(training_step.measure(training_step.Case(compiled=True), settings)[0])
        print("\n".join(network_table(content["networks"])), flush=True)
    except Exception as error:
        traceback.print_exc()
        content["failures"].append(f"network: {' '.join(str(error).split())[:300]}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one kind of mask")
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds until it stops and reports")
    parser.add_argument("--results", type=Path, required=True, metavar="PATH", help="JSON file to write")


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    require_gpu()
    torch.backends.cudnn.allow_tf32 = True  # float32 here means tf32
    content: dict[str, Any] = {
        "machine": machine("cuda"),
        "settings": {"cudnn.benchmark": True, "channels_last": True},
        "counted": COUNTED,
        "ceilings": {},
        "networks": [],
        "records": [],
        "failures": [],
        "stopped": "",
    }
    settings = replace(DEFAULTS["cuda"], min_rounds=5, max_rounds=40, seconds=0.6, go_on=True)
    try:
        with Deadline(options.deadline):
            content["ceilings"] = ceilings()
            gc.collect()
            gc.freeze()  # the many collections to come then skip what importing torch has made
            run_network(replace(settings, seconds=2.0), content)
            run(plan(options.quick), settings, content, options.results)
    except TimeIsUp:
        content["stopped"] = f"after {options.deadline:.0f} s, before all was measured"
    except KeyboardInterrupt:
        content["stopped"] = "by hand"
    except Exception as error:
        traceback.print_exc()
        content["stopped"] = " ".join(str(error).split())[:300]
        content["failures"].append(content["stopped"])
    write_json(options.results, content)
    print(f"\n{gpu_run.text(content)}\nwritten to {options.results}", flush=True)
    wrong = any(form in GPU_BACKENDS for r in content["records"] for form in r["missing"])
    sys.exit(1 if content["failures"] or wrong else 0)
