"""What a layer costs at least: operations and bytes over the rates that a GPU reaches with nothing else."""

from __future__ import annotations

import math

from names import FORWARD
from operators import LAYERS
from report.records import Record

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def operations(record: Record) -> float:
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
    per_pixel = 2 * c_in // layer.groups * layer.out_channels * max(layer.kernel_sizes) ** 2
    return record["batch"] * height * width * per_pixel * passes


def traffic(record: Record) -> int:
    """Bytes, each tensor once a pass: features, mask planes, weights, output and their gradients."""
    layer = LAYERS[record["layer"]]
    height, width = _out_size(record)
    out = record["batch"] * layer.out_channels * height * width
    weights = layer.taps * sum(layer.in_channels) // layer.groups * layer.out_channels
    features = sum(math.prod(shape) for shape in record["shapes"])
    planes = (
        sum(math.prod(shape) // shape[1] for shape in record["shapes"]) + record["batch"] * height * width
    )
    elements = features + planes + weights + out
    if record["direction"] != FORWARD:
        wanted = sum(math.prod(shape) for shape in record["shapes"] if shape[1] != 3)
        elements += features + planes + 2 * weights + out + wanted
    return elements * BYTES[record["dtype"]]


def floor_ms(record: Record, ceilings: dict[str, float]) -> float:
    """The larger of the times for operations and for bytes, in milliseconds."""
    seconds = max(
        operations(record) / (ceilings[f"{record['dtype']} TFLOP/s"] * 1e12),
        traffic(record) / (ceilings["copy GB/s"] * 1e9),
    )
    return seconds * 1e3


def _out_size(record: Record) -> tuple[int, int]:
    """A decoder stage's output is as large as its skip, the last of the shapes."""
    stride = LAYERS[record["layer"]].stride
    height, width = record["shapes"][-1][2:]
    return math.ceil(height / stride), math.ceil(width / stride)
