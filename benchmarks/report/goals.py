"""All numbers to reach: on a CPU, also against an earlier commit, and on a GPU, the whole network's too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from names import COMPILED, FORWARD, GPU_BACKENDS, NAIVE_1, NAIVE_C, PLAIN, STEP, TRAINING
from operators import LAYERS, msfef, partial_conv2d, upcat_partial_conv2d
from pconv_ext._backends import measured, rule
from report.records import Record, case_of, measured_call, over_earlier, peak_mb, ratio

DIRECTIONS = (FORWARD, TRAINING)
NETWORK = "network64"  # the paper's width
MSFEF = tuple(layer.name for layer in msfef.LAYERS)
DECODER = tuple(layer.name for layer in upcat_partial_conv2d.LAYERS)
DEPTHWISE = tuple(layer.name for layer in partial_conv2d.DEPTHWISE)  # 3x3, 3x3 with stride 2, 7x7, the same
EDGES = (MSFEF[0], DECODER[-1])  # 3 channels in, 3 out
INNER = tuple(name for name in LAYERS if name not in (*EDGES, *DEPTHWISE))

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

    def is_of(self, record: Record) -> bool:
        layer, direction = case_of(record)
        return layer in self.layers and direction in self.bars

    def reached(self, direction: str, layer: str, value: float) -> bool:
        bar = self.of(self.bars, direction, layer)
        return value <= bar if self.at_most else value >= bar


def faster_than(form: str) -> Value:
    return lambda record, ours: ratio(record, form, ours)


def over_plain(record: Record, ours: str) -> float | None:
    return ratio(record, ours, PLAIN)


def over_commit(record: Record, ours: str) -> float | None:
    """Of a record of `python benchmarks against`."""
    return over_earlier(record)


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
    """What "auto" takes by the table of the package, without one measured on that machine."""
    key, size, pixels = measured_call(record)
    rows = [row for row in measured.packaged()[1] if row.capability == record["capability"]]
    ranking = measured.lookup(measured.table(rows), key, size, pixels) or rule.order("cuda", *size[:2])
    chosen = next(name for name in ranking if name in GPU_BACKENDS)
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
        {FORWARD: (1.1, 0.5, 0.6, 0.8), TRAINING: (1.25, 0.5, 0.65, 0.85)},
        at_most=True,
        aims={FORWARD: (1.1, 0.37, 0.45, 0.55), TRAINING: (1.25, 0.37, 0.5, 0.6)},
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
        DEPTHWISE,
        faster_than(NAIVE_1),
        {FORWARD: (4.0, 2.0, 2.5, 1.5), TRAINING: (2.0, 2.0, 1.5, 1.5)},
    ),
    Goal(
        "faster than naive, 1-channel mask",
        tuple(name for name in LAYERS if name not in (*MSFEF, *DEPTHWISE)),
        faster_than(NAIVE_1),
        {FORWARD: (1.0,), TRAINING: (1.0,)},
    ),
    Goal(
        "faster than naive, C-channel mask",
        (NETWORK,),
        faster_than(NAIVE_C),
        {STEP: (5.0,)},
        aims={STEP: (7.0,)},
    ),
]

#: The same where both we and the plain convolution have AVX2 at most.
CPU_AVX2 = [
    Goal(
        "time over a plain 7x7 convolution",
        MSFEF[1:],
        over_plain,
        {FORWARD: (0.75,), TRAINING: (0.75,)},
        at_most=True,
    ),
]

#: The last commit before the CPU's Winograd products.
BEFORE_WINOGRAD = "c1d3f9b"
GAINING = DECODER[3:7]  # upcat12-15, whose time over the plain convolution is to fall


def against(commit: str) -> list[Goal]:
    """Of the time over the plain convolution, now over that at `commit`, a full hash: nothing gets slower."""
    gaining = GAINING if commit.startswith(BEFORE_WINOGRAD) else ()
    others = tuple(name for name in LAYERS if name not in gaining)
    what = "time over that at the commit"
    return [
        Goal(
            what,
            gaining,
            over_commit,
            {FORWARD: (0.7,), TRAINING: (0.7,)},
            at_most=True,
            aims={FORWARD: (0.55,), TRAINING: (0.55,)},
        ),
        Goal(what, others, over_commit, {FORWARD: (1.03,), TRAINING: (1.03,)}, at_most=True),
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
        EDGES + INNER,
        of_cuda(auto_over_best),
        {FORWARD: (1.05,), TRAINING: (1.05,)},
        at_most=True,
    ),
]

#: A training step of the whole network on a GPU: times ours, at least.
NETWORK_TIMES = {NAIVE_1: 2.5, NAIVE_C: 2.5, COMPILED: 1.6}
NETWORK_MEMORY = 2.0
