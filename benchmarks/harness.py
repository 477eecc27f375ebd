"""How it is measured: checked against the reference, interleaved in one process, memory from its events."""

from __future__ import annotations

import gc
import itertools
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from baselines import Form
from cases import Problem, call
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import pconv_ext

# Largest ||got - truth|| / ||truth|| over output and gradients, truth being the reference in float64 on the
# same values. Measured in float32: up to 4e-6, and 1.3e-5 in a bias gradient that sums 262144 terms; 16-bit
# operands bring 2^-9 (bfloat16) or 2^-11 (float16). One wrong pixel in 65536 makes 4e-3.
TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 3e-3,
}
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints two lines for every use

SHORTEST_SAMPLE_MS = 1.0  # shorter calls are averaged until a sample lasts this long


class WrongResult(AssertionError):
    """A form does not compute what the reference computes, so it is not timed."""


@dataclass(frozen=True)
class Truth:
    """Output, mask and gradients of the reference in float64, for the upstream gradient `grad_out`."""

    grad_out: Tensor
    out: Tensor
    new_mask: Tensor
    gradients: list[Tensor]


def truth(problem: Problem) -> Truth:
    exact = problem.to(problem.features[0].device.type, torch.float64)
    out, new_mask = call(pconv_ext.reference, exact)
    generator = torch.Generator().manual_seed(0)
    grad_out = torch.randn(out.shape, generator=generator).to(problem.features[0])
    gradients = torch.autograd.grad(out, exact.leaves, grad_out.double())
    return Truth(grad_out, out.detach(), new_mask, list(gradients))


def check(form: Form, problem: Problem, expected: Truth) -> float:
    """The form's largest relative error; raises `WrongResult` above the tolerance or on a different mask."""
    where = f"{form.name} on {problem.layer.name}"
    form.clear_gradients()
    out, new_mask = form.run()
    out.backward(expected.grad_out)
    got = [out.detach(), *(leaf.grad for leaf in problem.leaves)]
    errors = []
    for a, b in zip(got, [expected.out, *expected.gradients], strict=True):
        if a is None:
            raise WrongResult(f"{where}: a gradient is missing for a leaf of shape {list(b.shape)}")
        errors.append(((a.double() - b).norm() / b.norm()).item())
    worst, limit = max(errors), TOLERANCE[out.dtype]
    if not worst <= limit:  # also where it is NaN
        raise WrongResult(f"{where}: errors of output and gradients {errors}, limit {limit}")
    if new_mask is None or not torch.equal(new_mask[:, :1] != 0, expected.new_mask != 0):
        raise WrongResult(f"{where}: its updated mask is not the reference's")
    form.clear_gradients()
    return worst


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
    total = 0.0
    events = []
    for _ in range(repeats):
        form.clear_gradients()
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            step()
            end.record()
            events.append((start, end))
        else:
            began = time.perf_counter()
            step()
            total += time.perf_counter() - began
    if device == "cuda":
        torch.cuda.synchronize()
        total = sum(start.elapsed_time(end) for start, end in events) / 1e3
    return total / repeats * 1e3


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
        warm = first if first > 50 else _sample_ms(steps[form.name], form, device, 1)
        repeats[form.name] = max(1, round(SHORTEST_SAMPLE_MS / max(warm, 1e-3)))
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


def peak_memory(form: Form, problem: Problem, grad_out: Tensor | None, device: str) -> dict[str, float]:
    """Peak MB (1e6 bytes) of one call above inputs and parameters, from torch's own allocation events.

    "total" counts everything; "weights" only tensors as large as one of the layer's kernels, or several of
    them merged or side by side (gradients, folded and re-ordered copies); "other" all but those. Each is the
    peak of its own curve. The gradient from above counts too, since something must hold it meanwhile.
    """
    layer = problem.layer
    tap_bytes = sum(layer.in_channels) * layer.out_channels * problem.features[0].element_size()
    squares = [k * k for k in layer.kernel_sizes]
    sizes = {sum(c) for n in range(1, len(squares) + 1) for c in itertools.combinations(squares, n)}

    def weight_sized(nbytes: int) -> bool:
        return any(abs(abs(nbytes) / tap_bytes - taps) <= 0.001 * taps for taps in sizes)

    form.clear_gradients()
    gc.collect()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities, profile_memory=True) as profiler:
        step_of(form, None if grad_out is None else grad_out.clone())()
    form.clear_gradients()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    wanted = torch.device(device).type.upper()
    live = dict.fromkeys(("total", "weights", "other"), 0)
    peak = dict(live)
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.device_type().name != wanted:
            continue
        for key in ("total", "weights" if weight_sized(event.nbytes()) else "other"):
            live[key] += event.nbytes()
            peak[key] = max(peak[key], live[key])
    return {key: round(value / 1e6, 2) for key, value in peak.items()}
