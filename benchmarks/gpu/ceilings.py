"""The rates that a GPU reaches with nothing else: measured, not read off a data sheet.

A large matrix product and a large copy.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

MATRIX_SIDE = 8192  # 1.1 TFLOP a product
COPY_BYTES = 2**31  # many times any cache


def _seconds(step: Callable[[], object], calls: int, samples: int) -> float:
    """Median seconds a call over `samples` samples of `calls` calls, after a first one to warm up."""
    measured = []
    for _ in range(samples + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        measured.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(measured[1:])


def ceilings() -> dict[str, float]:
    """TFLOP/s of a matrix product in bfloat16, and float32 through tf32; GB/s of a copy, reads and writes."""
    result = {}
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    for dtype in (torch.bfloat16, torch.float32):
        # Random, because products of zeros draw less power and run faster than real ones.
        a, b = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda").to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), calls=10, samples=9)
        result[f"{str(dtype).removeprefix('torch.')} TFLOP/s"] = 2 * MATRIX_SIDE**3 / seconds / 1e12
    torch.backends.cuda.matmul.allow_tf32 = allowed
    source = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), calls=10, samples=9)
    result["copy GB/s"] = 2 * COPY_BYTES / seconds / 1e9
    return {name: round(value, 1) for name, value in result.items()}
