"""Milliseconds of a call: all forms interleaved in one process, gradients cleared outside of the time.

Devices are "cpu" and "cuda".
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from measure.forms import Form
from operators.declaration import Problem

# Shorter calls are averaged until a sample lasts this long. On a GPU the first kernels of a sample wait for
# the host, until it has got ahead.
SHORTEST_SAMPLE_MS = {"cpu": 1.0, "cuda": 8.0}
MOST_INPUT_SETS = 16


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


def input_sets(problem: Problem) -> int:
    """How many copies of the inputs make twice the GPU's L2 cache; 1 where they outgrow it, and on a CPU."""
    if not problem.features[0].is_cuda:
        return 1
    cache = torch.cuda.get_device_properties(problem.features[0].device).L2_cache_size
    nbytes = sum(t.nbytes for t in [*problem.features, *problem.weights])
    return 1 if nbytes >= cache else min(MOST_INPUT_SETS, math.ceil(2 * cache / nbytes))


def step_of(form: Form, grad_out: Tensor | None) -> Callable[[], None]:
    """One timed call: forward without gradients, or forward and backward where `grad_out` is given."""

    def forward() -> None:
        with torch.no_grad():
            form.run()

    def forward_backward() -> None:
        form.run()[0].backward(grad_out)

    return forward if grad_out is None else forward_backward


def _sample_ms(step: Callable[[], None], form: Form, device: str, repeats: int) -> float:
    """Mean time of `repeats` calls, gradients cleared before each and outside of its time."""
    if device == "cuda":
        return _cuda_sample_ms(step, form, repeats)[0]
    total = 0.0
    for _ in range(repeats):
        form.clear_gradients()
        began = time.perf_counter()
        step()
        total += time.perf_counter() - began
    return total / repeats * 1e3


def _cuda_sample_ms(step: Callable[[], None], form: Form, repeats: int) -> tuple[float, float]:
    """Mean milliseconds a call between two events around all of them, and of the host to issue one.

    Clearing gradients gives memory back to torch's allocator and takes the GPU no time.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    began = time.perf_counter()
    for _ in range(repeats):
        form.clear_gradients()
        step()
    issued = time.perf_counter() - began
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats, issued / repeats * 1e3


def host_ms(form: Form, grad_out: Tensor | None) -> float:
    """Milliseconds the host takes to issue one call; where that is the form's whole time, the GPU waits."""
    return _cuda_sample_ms(step_of(form, grad_out), form, 5)[1]


def interleaved(
    forms: Sequence[Form],
    grad_out: Tensor | None,
    device: str,
    min_rounds: int,
    max_rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Milliseconds a call, by form, one sample of each form a round, in a new random order each round.

    Rounds go on for `seconds`, but at least `min_rounds` and at most `max_rounds` of them. The i-th samples
    of all forms belong to one round, so their ratios cancel what slows the whole machine for a while.
    """
    steps = {form.name: step_of(form, grad_out) for form in forms}
    repeats = {}
    for form in forms:  # the warm-up, which also compiles what is still to be compiled
        first = _sample_ms(steps[form.name], form, device, 1)
        again = device == "cuda" or first <= 50  # on a GPU the first call also chooses algorithms
        warm = _sample_ms(steps[form.name], form, device, 1) if again else first
        repeats[form.name] = max(1, round(SHORTEST_SAMPLE_MS[device] / max(warm, 1e-3)))
    samples: dict[str, list[float]] = {form.name: [] for form in forms}
    order, shuffle = list(forms), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        for done in range(max_rounds):
            if done >= min_rounds and time.perf_counter() - began > seconds:
                break
            shuffle(order)
            for form in order:
                samples[form.name].append(_sample_ms(steps[form.name], form, device, repeats[form.name]))
    finally:
        gc.enable()
    for form in forms:
        form.clear_gradients()
    return samples
