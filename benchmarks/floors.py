"""What a layer costs at least: its operations and bytes over the rates that a GPU reaches with nothing else.

The ceilings are measured, not read off a data sheet: a large matrix product and a large copy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from layers import LAYERS
from names import FORWARD

Ceilings = dict[str, float]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
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


def ceilings() -> Ceilings:
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


def operations(record: dict[str, Any]) -> float:
    """Of one convolution with the layer's largest kernel, and in training of both its gradients.

    A multiplication and an addition are two. Windows that holes or borders cut need more, and a decoder stage
    that merges the taps falling on one stored pixel of its low map needs less.
    """
    layer = LAYERS[record["layer"]]
    height, width = _out_size(record)
    c_in = sum(layer.in_channels)
    passes = 1.0
    if record["direction"] != FORWARD:
        # A gradient for the weights, and one for the inputs that are not photographs.
        passes += 1 + sum(c for c in layer.in_channels if c != 3) / c_in
    per_pixel = 2 * c_in * layer.out_channels * max(layer.kernel_sizes) ** 2
    return record["batch"] * height * width * per_pixel * passes


def traffic(record: dict[str, Any]) -> int:
    """Bytes, each tensor once a pass: features, mask planes, weights, output and their gradients."""
    layer = LAYERS[record["layer"]]
    height, width = _out_size(record)
    out = record["batch"] * layer.out_channels * height * width
    weights = layer.taps * sum(layer.in_channels) * layer.out_channels
    features = sum(math.prod(shape) for shape in record["shapes"])
    planes = (
        sum(math.prod(shape) // shape[1] for shape in record["shapes"]) + record["batch"] * height * width
    )
    elements = features + planes + weights + out
    if record["direction"] != FORWARD:
        wanted = sum(math.prod(shape) for shape in record["shapes"] if shape[1] != 3)
        elements += features + planes + 2 * weights + out + wanted
    return elements * BYTES[record["dtype"]]


def floor_ms(record: dict[str, Any], known: Ceilings) -> float:
    """The larger of the times for operations and for bytes, in milliseconds."""
    seconds = max(
        operations(record) / (known[f"{record['dtype']} TFLOP/s"] * 1e12),
        traffic(record) / (known["copy GB/s"] * 1e9),
    )
    return seconds * 1e3


def _out_size(record: dict[str, Any]) -> tuple[int, int]:
    """A decoder stage's output is as large as its skip, the last of the shapes."""
    stride = LAYERS[record["layer"]].stride
    height, width = record["shapes"][-1][2:]
    return math.ceil(height / stride), math.ceil(width / stride)
