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
from pconv_ext._tuning import tune
from pconv_ext.inpainting.tuning import BATCHES, DTYPES, network_problems


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds until it stops and writes")
    parser.add_argument("--results", type=Path, required=True, metavar="PATH", help="JSON file to write")


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    require_gpu()
    device = torch.device("cuda", torch.cuda.current_device())
    torch.backends.cudnn.allow_tf32 = True  # float32 here means tf32
    machine = _machine.identity(device)
    try:
        with Deadline(options.deadline):
            problems = network_problems(InpaintingNet(backend="reference"), device, BATCHES["cuda"])
            tune.tune(problems, device, DTYPES["cuda"], lambda line: print(line, flush=True))
    except TimeIsUp:
        print(f"stopped after {options.deadline:.0f} s, before all was measured")
    write_text(options.results, tune.export(machine))
    tuned, _ = tables.find(machine)
    bans = tuned.bans if tuned else []
    for ban in bans:
        print("banned:", *ban)
    print(f"written to {options.results}")
    sys.exit(1 if bans else 0)
