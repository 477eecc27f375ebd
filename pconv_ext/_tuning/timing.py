"""Milliseconds of a call: all of what is compared interleaved in one process.

The benchmarks load this file by its path, also beside an earlier version of the package: it imports nothing
of the package. Devices are "cpu" and "cuda".
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

# Shorter calls are averaged until a sample lasts this long. On a GPU the first kernels of a sample wait for
# the host, until it has got ahead.
SHORTEST_SAMPLE_MS = {"cpu": 1.0, "cuda": 8.0}


def nothing() -> None:
    """What a step clears that leaves nothing behind."""


class Step(NamedTuple):
    """What is timed. `clear` runs before each call, outside of its time."""

    name: str
    run: Callable[[], object]
    clear: Callable[[], None] = nothing


@contextmanager
def cudnn_search() -> Iterator[None]:
    """cuDNN tries its algorithms at the first call of a shape and keeps the fastest, as users on GPUs let it.

    Only around what is timed: searching for the float64 reference too would take longer than all the rest.
    """
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def sample_ms(step: Step, device: str, repeats: int) -> float:
    """Mean time of `repeats` calls."""
    if device == "cuda":
        return cuda_sample_ms(step, repeats)[0]
    total = 0.0
    for _ in range(repeats):
        step.clear()
        began = time.perf_counter()
        step.run()
        total += time.perf_counter() - began
    return total / repeats * 1e3


def cuda_sample_ms(step: Step, repeats: int) -> tuple[float, float]:
    """Mean milliseconds a call between two events around all of them, and of the host to issue one.

    Clearing gradients gives memory back to torch's allocator and takes the GPU no time.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    began = time.perf_counter()
    for _ in range(repeats):
        step.clear()
        step.run()
    issued = time.perf_counter() - began
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats, issued / repeats * 1e3


def interleaved(
    steps: Sequence[Step], device: str, min_rounds: int, max_rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds a call, by step, one sample of each step a round, in a new random order each round.

    Rounds go on for `seconds`, but at least `min_rounds` and at most `max_rounds` of them. The i-th samples
    of all steps belong to one round, so their ratios cancel what slows the whole machine for a while.
    """
    repeats = {}
    for step in steps:  # the warm-up, which also compiles what is still to be compiled
        first = sample_ms(step, device, 1)
        again = device == "cuda" or first <= 50  # on a GPU the first call also chooses algorithms
        warm = sample_ms(step, device, 1) if again else first
        repeats[step.name] = max(1, round(SHORTEST_SAMPLE_MS[device] / max(warm, 1e-3)))
    samples: dict[str, list[float]] = {step.name: [] for step in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        for done in range(max_rounds):
            if done >= min_rounds and time.perf_counter() - began > seconds:
                break
            shuffle(order)
            for step in order:
                samples[step.name].append(sample_ms(step, device, repeats[step.name]))
    finally:
        if collecting:
            gc.enable()
    for step in steps:
        step.clear()
    return samples
