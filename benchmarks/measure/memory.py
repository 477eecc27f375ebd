"""Peak memory of a call, from torch's own allocation events; MB of 1e6 bytes."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from measure.forms import Form
from measure.timing import step_of
from operators.declaration import Problem

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints two lines for every use


def peak_memory(form: Form, problem: Problem, grad_out: Tensor | None, device: str) -> dict[str, float]:
    """Peak MB (1e6 bytes) of one call above inputs and parameters, from torch's own allocation events.

    "total" counts everything; "weights" only tensors as large as one of the layer's kernels, or several of
    them merged or side by side (gradients, folded and re-ordered copies), in the dtype of the features or in
    float32; "other" all but those. Each is the peak of its own curve. The gradient from above counts too,
    since something must hold it meanwhile. On a GPU sizes are those of the blocks of torch's allocator, and
    "total" is what `torch.cuda.max_memory_allocated` says.
    """
    layer, x = problem.layer, problem.features[0]
    weight_elements = sum(layer.in_channels) // layer.groups * layer.out_channels
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
