"""Checks and times every backend on the layers of the paper's network, batches of 32 and 1, on this GPU.

What `pconv-ext tune` does, within a deadline: `benchmarks/gpu.sh tune`. Writes the table that "auto" follows
on this machine, and a copy for `tools/write_measured.py`. Exit code 1 where a backend is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from gpu.stages import Deadline, TimeIsUp, require_gpu, write_text
from pconv_ext import InpaintingNet, _machine
from pconv_ext._backends import tables
from pconv_ext._tuning.tune import export, tune
from pconv_ext.inpainting.tuning import BATCHES, DTYPES, network_problems


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds until it stops and writes")
    parser.add_argument("--results", type=Path, required=True, metavar="PATH", help="JSON file to write")


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    require_gpu()
    torch.backends.cudnn.allow_tf32 = True  # float32 here means tf32
    tune_on(torch.device("cuda", torch.cuda.current_device()), options.results, options.deadline)


def tune_on(device: torch.device, results: Path, deadline: float) -> None:
    """Always raises SystemExit."""
    machine, stopped = _machine.identity(device), ""
    try:
        with Deadline(deadline):
            net = InpaintingNet(backend="reference")
            problems = network_problems(net, device, BATCHES[device.type])
            tune(problems, device, DTYPES[device.type], lambda line: print(line, flush=True))
    except TimeIsUp:
        print(f"stopped after {deadline:.0f} s, before all was measured")
    except RuntimeError as error:  # a backend took the GPU's context with it
        stopped = " ".join(str(error).split())[:300]
        print(f"stopped: {stopped}")
    tuned, why = tables.find(machine)
    if tuned is None:
        sys.exit(why or "nothing was measured")
    write_text(results, export(machine))
    print(f"written to {results}")
    for ban in tuned.bans:
        print("banned:", *ban)
    sys.exit(1 if stopped or tuned.bans else 0)
