"""How it is measured: checked against the reference, interleaved in one process, memory from its events.

Devices are "cpu" and "cuda"; times are milliseconds, memory MB of 1e6 bytes.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from baselines import Form
from layers import Problem, call
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
TF32_TOLERANCE = 3e-3  # float32 on a GPU that may use tf32, whose operands are as coarse as float16's
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints two lines for every use

# Shorter calls are averaged until a sample lasts this long. On a GPU the first kernels of a sample wait for
# the host, until it has got ahead.
SHORTEST_SAMPLE_MS = {"cpu": 1.0, "cuda": 8.0}
MOST_INPUT_SETS = 16


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
    generator = torch.Generator(out.device).manual_seed(0)
    values = torch.randn(out.shape, generator=generator, device=out.device)
    layout = torch.channels_last if _is_channels_last(problem.features[-1]) else torch.contiguous_format
    grad_out = values.to(problem.features[0].dtype).contiguous(memory_format=layout)
    gradients = torch.autograd.grad(out, exact.leaves, grad_out.double())
    return Truth(grad_out, out.detach(), new_mask, list(gradients))


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


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
    if out.is_cuda and out.dtype == torch.float32:
        limit = TF32_TOLERANCE
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


def peak_memory(form: Form, problem: Problem, grad_out: Tensor | None, device: str) -> dict[str, float]:
    """Peak MB (1e6 bytes) of one call above inputs and parameters, from torch's own allocation events.

    "total" counts everything; "weights" only tensors as large as one of the layer's kernels, or several of
    them merged or side by side (gradients, folded and re-ordered copies), in the dtype of the features or in
    float32; "other" all but those. Each is the peak of its own curve. The gradient from above counts too,
    since something must hold it meanwhile. On a GPU sizes are those of the blocks of torch's allocator, and
    "total" is what `torch.cuda.max_memory_allocated` says.
    """
    layer, x = problem.layer, problem.features[0]
    weight_elements = sum(layer.in_channels) * layer.out_channels
    squares = [k * k for k in layer.kernel_sizes]
    sizes = {sum(c) for n in range(1, len(squares) + 1) for c in itertools.combinations(squares, n)}

    def weight_sized(nbytes: int) -> bool:
        tensors = [taps * weight_elements * size for taps in sizes for size in {x.element_size(), 4}]
        return any(abs(abs(nbytes) - tensor) <= max(0.001 * tensor, block) for tensor in tensors)

    block = 511 if device == "cuda" else 0  # what the allocator's blocks of 512 bytes may add
    live = dict.fromkeys(("total", "weights", "other"), 0)
    peak = dict(live)
    step = step_of(form, None if grad_out is None else grad_out.clone())
    sizes_in_order, on_gpu = allocations(form, step, device)
    for nbytes in sizes_in_order:
        for key in ("total", "weights" if weight_sized(nbytes) else "other"):
            live[key] += nbytes
            peak[key] = max(peak[key], live[key])
    if on_gpu is not None:
        peak["total"] = on_gpu
        # Already so, unless the profiler missed events; then what it missed is no weight's.
        peak["other"] = max(peak["other"], peak["total"] - peak["weights"])
    return {key: round(value / 1e6, 2) for key, value in peak.items()}


def allocations(form: Form, step: Callable[[], None], device: str) -> tuple[list[int], int | None]:
    """Bytes allocated (freed: negative) by one step, in order; and the peak that the GPU's allocator saw."""
    form.clear_gradients()
    gc.collect()
    before = _restart_peak() if device == "cuda" else 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    form.clear_gradients()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    wanted = torch.device(device).type.upper()
    events = [e for e in sorted(events, key=lambda e: e.start_ns()) if e.device_type().name == wanted]
    on_gpu = torch.cuda.max_memory_allocated() - before if device == "cuda" else None
    return [e.nbytes() for e in events], on_gpu


def _restart_peak() -> int:
    """Bytes allocated on the GPU now, from which its peak is counted afresh."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()
