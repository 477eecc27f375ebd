"""All numbers to reach: on a CPU, on a GPU, and in a training step of the whole network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from names import COMPILED, FORWARD, GPU_BACKENDS, NAIVE_1, NAIVE_C, PLAIN, TRAINING
from operators import LAYERS, msfef, upcat_partial_conv2d
from pconv_ext._backends import measured
from report.records import Record, measured_call, peak_mb, ratio

DIRECTIONS = (FORWARD, TRAINING)
MSFEF = tuple(layer.name for layer in msfef.LAYERS)
DECODER = tuple(layer.name for layer in upcat_partial_conv2d.LAYERS)
EDGES = (MSFEF[0], DECODER[-1])  # 3 channels in, 3 out
INNER = tuple(name for name in LAYERS if name not in EDGES)

#: Of a record and the name of our form in it; None where something was not measured.
Value = Callable[[Record, str], float | None]


@dataclass(frozen=True)
class Goal:
    """A ratio to reach in each of `layers`; `bars` has one bar for each of them, or one for all."""

    what: str
    layers: tuple[str, ...]
    value: Value
    bars: dict[str, tuple[float, ...]]  # by direction
    at_most: bool = False
    aims: dict[str, tuple[float, ...]] = field(default_factory=dict)  # better than the bars, and only shown

    def of(self, numbers: dict[str, tuple[float, ...]], direction: str, layer: str) -> float:
        """The number in `bars` or `aims` that is this layer's."""
        several = numbers[direction]
        return several[self.layers.index(layer)] if len(several) > 1 else several[0]

    def reached(self, direction: str, layer: str, value: float) -> bool:
        bar = self.of(self.bars, direction, layer)
        return value <= bar if self.at_most else value >= bar


def faster_than(form: str) -> Value:
    return lambda record, ours: ratio(record, form, ours)


def over_plain(record: Record, ours: str) -> float | None:
    return ratio(record, ours, PLAIN)


def over_peak_of(form: str) -> Value:
    def value(record: Record, ours: str) -> float | None:
        mine, other = peak_mb(record, ours), peak_mb(record, form)
        return mine / other if mine is not None and other else None

    return value


def of_cuda(value: Callable[[Record], float | None]) -> Value:
    """For goals of the CUDA backend, where both were timed."""
    return lambda record, ours: value(record) if ours == "cuda" and "triton" in record["forms"] else None


def cuda_over_triton(record: Record) -> float | None:
    return ratio(record, "triton", "cuda")


def cuda_over_best(record: Record) -> float | None:
    return max(ratio(record, "cuda", "triton") or 0.0, 1.0)


def auto_over_best(record: Record) -> float | None:
    chosen = measured.lookup(*measured_call(record)) or GPU_BACKENDS[0]
    return max(ratio(record, chosen, other) or 0.0 for other in GPU_BACKENDS)


#: Batch 4, float32, two threads, a hole of a quarter of each side in the layer's own input.
CPU = [
    Goal(
        "faster than naive, C-channel mask",
        MSFEF,
        faster_than(NAIVE_C),
        {FORWARD: (6.0, 2.7, 2.7, 2.2), TRAINING: (3.0, 1.7, 1.7, 1.4)},
    ),
    Goal(
        "faster than naive, 1-channel mask",
        MSFEF,
        faster_than(NAIVE_1),
        {FORWARD: (5.0, 1.4, 1.4, 1.2), TRAINING: (2.0, 1.4, 1.4, 1.1)},
    ),
    Goal(
        "time over a plain 7x7 convolution",
        MSFEF,
        over_plain,
        {FORWARD: (1.8, 1.35, 1.35, 1.5), TRAINING: (1.9, 1.3, 1.3, 1.5)},
        at_most=True,
        aims={FORWARD: (1.4, 1.1, 1.1, 1.25), TRAINING: (1.6, 1.1, 1.1, 1.3)},
    ),
    Goal(
        "peak over naive, C-channel mask",
        MSFEF[:2],
        over_peak_of(NAIVE_C),
        {TRAINING: (0.5,)},
        at_most=True,
    ),
    Goal("peak over naive, 1-channel mask", MSFEF, over_peak_of(NAIVE_1), {TRAINING: (1.0,)}, at_most=True),
    Goal(
        "faster than naive, C-channel mask",
        DECODER,
        faster_than(NAIVE_C),
        {FORWARD: (1.5,), TRAINING: (1.5,)},
    ),
    Goal(
        "faster than naive, 1-channel mask",
        tuple(name for name in LAYERS if name not in MSFEF),
        faster_than(NAIVE_1),
        {FORWARD: (1.0,), TRAINING: (1.0,)},
    ),
]

GPU = [
    Goal(
        "MSFEF: faster than naive, C-channel mask",
        MSFEF,
        faster_than(NAIVE_C),
        {FORWARD: (4.0,), TRAINING: (3.0,)},
    ),
    Goal(
        "MSFEF: faster than naive, 1-channel mask, compiled",
        MSFEF,
        faster_than(COMPILED),
        {FORWARD: (2.0,), TRAINING: (1.6,)},
    ),
    Goal(
        "MSFEF: time over one plain 7x7 convolution",
        MSFEF,
        over_plain,
        {FORWARD: (1.0, 1.0, 1.1, 1.2), TRAINING: (1.2,)},
        at_most=True,
    ),
    Goal(
        "decoder: faster than up-sample + cat + naive, C-channel",
        DECODER,
        faster_than(NAIVE_C),
        {FORWARD: (2.0,), TRAINING: (1.6,)},
    ),
    Goal(
        "memory: peak over that of naive, C-channel mask",
        MSFEF[:2],
        over_peak_of(NAIVE_C),
        {FORWARD: (1 / 3,), TRAINING: (1 / 3,)},
        at_most=True,
    ),
    Goal(
        "first and last layer: CUDA faster than Triton",
        EDGES,
        of_cuda(cuda_over_triton),
        {FORWARD: (1.5,), TRAINING: (1.5,)},
    ),
    Goal(
        "inner layers: time of CUDA over that of the faster backend",
        INNER,
        of_cuda(cuda_over_best),
        {FORWARD: (1.2,), TRAINING: (1.2,)},
        at_most=True,
    ),
    Goal(
        "time of auto's choice over that of the faster backend",
        tuple(LAYERS),
        of_cuda(auto_over_best),
        {FORWARD: (1.05,), TRAINING: (1.05,)},
        at_most=True,
    ),
]

#: A training step of the whole network on a GPU: times ours, at least.
NETWORK_TIMES = {NAIVE_1: 2.5, NAIVE_C: 2.5, COMPILED: 1.6}
NETWORK_MEMORY = 2.0
