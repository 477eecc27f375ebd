"""How far the CPU kernels are from float64, by pass and layer, with Winograd's products and without.

    python tools/winograd_error.py [--seeds N] [--only NAME ...] [--threads N] [--json FILE]

Prints for each layer, pass and kind of data the worst (and the median) over the seeds of the largest error of
a call, by algorithm, in millionths of |expected| + rms(expected): the measure of tests/support/tolerances.py.
Layers are those of the paper's network at batch 1 that Winograd's products take, without a hole and with one
of a quarter of each side, and two plain windows. Weights make outputs of the order of one, scales are
1 / branches as the layers begin, the gradient from above is standard normal, features are standard normal or
their positive part, on which the gradient of the input does not depend.

The reference is torch's convolution in float64 on masked features, multiplied with the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import pconv_ext

ALGORITHMS = ("auto", "direct")
DATA = ("normal", "relu")
MASKS = ("none", "hole")
#: What one pass of the kernels computes, by the name of a result without its number.
PASSES = {
    "out": "out",
    "x": "grad input",
    "x_low": "grad input",
    "skip": "grad input",
    "weight": "grad weight",
}

Results = dict[str, Tensor]
#: Errors of one tensor, one for each seed, by (layer, mask, data, tensor, algorithm).
Errors = dict[tuple[str, str, str, str, str], list[float]]


class Layer(NamedTuple):
    """A layer of one image; `channels` of an up-sampled map (if there are two) and of one of `size`."""

    name: str
    channels: tuple[int, ...]
    c_out: int
    sizes: tuple[int, ...]
    stride: int
    size: int


LAYERS = [
    Layer("msfef2", (64,), 128, (3, 5, 7), 2, 128),
    Layer("msfef3", (128,), 256, (3, 5, 7), 2, 64),
    Layer("msfef4", (256,), 512, (3, 5, 7), 2, 32),
    Layer("upcat12", (512, 512), 512, (3,), 1, 16),
    Layer("upcat13", (512, 256), 256, (3,), 1, 32),
    Layer("upcat14", (256, 128), 128, (3,), 1, 64),
    Layer("upcat15", (128, 64), 64, (3,), 1, 128),
    Layer("3x3", (64,), 64, (3,), 1, 64),
    Layer("5x5, stride 2", (64,), 128, (5,), 2, 64),
]


class Call:
    """Arguments of one call of a layer, its gradient from above, and what both forms make of them."""

    def __init__(self, layer: Layer, mask: str, data: str, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random)

        self.layer = layer
        self.grad_input = data == DATA[0]
        up = len(layer.channels) == 2
        sides = (layer.size // 2, layer.size) if up else (layer.size,)
        features = [normal(1, c, side, side) for c, side in zip(layer.channels, sides, strict=True)]
        self.features = [x.relu() for x in features] if data == "relu" else features
        self.masks = [hole(side) if mask == "hole" else None for side in sides]
        c_in = sum(layer.channels)
        self.weights = [normal(layer.c_out, c_in, k, k) * (c_in * k * k) ** -0.5 for k in layer.sizes]
        self.scale = 1 / len(layer.sizes)
        side = (layer.size - 1) // layer.stride + 1  # every window is centred
        self.grad_out = normal(1, layer.c_out, side, side)

    def results(self, algorithm: str) -> Results:
        """Output and gradients from the CPU kernels."""
        features = [x.requires_grad_(self.grad_input) for x in self.features]
        weights = [weight.requires_grad_() for weight in self.weights]
        layer = self.layer
        with pconv_ext.set_algorithm(algorithm):
            if len(features) == 2:
                (x_low, skip), (mask_low, mask_skip) = features, self.masks
                out, _ = pconv_ext.upcat_partial_conv2d(
                    x_low, mask_low, skip, mask_skip, weights[0], backend="cpu"
                )
            elif len(weights) > 1:
                scales = torch.full((len(weights), layer.c_out), self.scale)
                out, _ = pconv_ext.msfef(
                    features[0], self.masks[0], weights, None, scales, layer.stride, backend="cpu"
                )
            else:
                padding = layer.sizes[0] // 2
                out, _ = pconv_ext.partial_conv2d(
                    features[0], self.masks[0], weights[0], None, layer.stride, padding, backend="cpu"
                )
            wanted = [*features, *weights] if self.grad_input else weights
            gradients = list(torch.autograd.grad(out, wanted, self.grad_out))
        last = len(gradients) - len(weights)
        return self._named(out.detach(), gradients[:last], gradients[last:])

    @torch.no_grad()
    def expected(self) -> Results:
        """The same in float64."""
        layer, stride = self.layer, self.layer.stride
        pairs = zip(self.features, self.masks, strict=True)
        valid = [(torch.ones(1, 1, *x.shape[2:]) if m is None else m).double() for x, m in pairs]
        selected = [x.double() * m for x, m in zip(self.features, valid, strict=True)]
        if len(selected) == 2:
            whole = torch.cat([up(selected[0]), selected[1]], 1)
            entries = layer.channels[0] * up(valid[0]) + layer.channels[1] * valid[1]
        else:
            whole, entries = selected[0], layer.channels[0] * valid[0]
        counts = [F.conv2d(entries, entries.new_ones(1, 1, k, k), None, stride, k // 2) for k in layer.sizes]
        alive = counts[0] > 0
        out = torch.zeros((), dtype=torch.float64)
        grad_whole = torch.zeros((), dtype=torch.float64)
        grad_weights = []
        for weight, count, k in zip(self.weights, counts, layer.sizes, strict=True):
            factor = self.scale * sum(layer.channels) * k * k / count.clamp(min=1) * alive
            padding = [k // 2, k // 2]
            out = out + F.conv2d(whole, weight.double(), None, stride, padding) * factor
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                self.grad_out.double() * factor,
                whole,
                weight.double(),
                None,
                [stride, stride],
                padding,
                [1, 1],
                False,
                [0, 0],
                1,
                [self.grad_input, True, False],
            )
            if self.grad_input:
                grad_whole = grad_whole + grad_x
            grad_weights.append(grad_weight)
        parts = list(grad_whole.split(layer.channels, 1)) if self.grad_input else []
        if len(parts) == 2:
            n, c, height, width = parts[0].shape
            parts[0] = parts[0].view(n, c, height // 2, 2, width // 2, 2).sum((3, 5))
        return self._named(out, [part * m for part, m in zip(parts, valid, strict=False)], grad_weights)

    def _named(self, out: Tensor, features: list[Tensor], weights: list[Tensor]) -> Results:
        names = ("x_low", "skip") if len(features) == 2 else ("x",) * len(features)
        kernels = {f"weight {k}": w for k, w in zip(self.layer.sizes, weights, strict=True)}
        return {"out": out, **dict(zip(names, features, strict=True)), **kernels}


def hole(side: int) -> Tensor:
    """bool [1, 1, side, side]: all but a square of a quarter of the side, about the middle."""
    mask = torch.ones(1, 1, side, side, dtype=torch.bool)
    first = side * 3 // 8
    mask[:, :, first : first + side // 4, first : first + side // 4] = False
    return mask


def up(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def error_of(actual: Tensor, expected: Tensor) -> float:
    """The largest |actual - expected| / (|expected| + rms of expected)."""
    scale = expected.abs() + expected.square().mean().sqrt()
    return ((actual.double() - expected).abs() / scale).max().item()


def measure(layers: list[Layer], seeds: int) -> Errors:
    """Runs every layer, with every mask and kind of data, on `seeds` inputs."""
    errors: Errors = {}
    start = time.perf_counter()
    for layer in layers:
        for seed in range(seeds):
            for mask in MASKS:
                for data in DATA:
                    call = Call(layer, mask, data, seed)
                    expected = call.expected()
                    for algorithm in ALGORITHMS:
                        for name, result in call.results(algorithm).items():
                            key = (layer.name, mask, data, name, algorithm)
                            errors.setdefault(key, []).append(error_of(result, expected[name]))
        print(f"{layer.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return errors


def by_pass(errors: Errors) -> Errors:
    """The same of a pass, the largest of its tensors for each seed."""
    merged: Errors = {}
    for (layer, mask, data, name, algorithm), values in errors.items():
        key = (layer, mask, data, PASSES[name.split()[0]], algorithm)
        merged[key] = [max(pair) for pair in zip(values, merged.get(key, values), strict=True)]
    return merged


def table(errors: Errors) -> str:
    """Worst (median) of both algorithms, in millionths."""
    rows = [f"{'layer':<14}{'mask':<6}{'data':<8}{'pass':<13}{'auto':>15}{'direct':>15}"]
    merged = by_pass(errors)
    for layer, mask, data, name, algorithm in merged:
        if algorithm != ALGORITHMS[0]:
            continue
        cells = []
        for each in ALGORITHMS:
            values = merged[layer, mask, data, name, each]
            cells.append(f"{max(values) * 1e6:.2f} ({statistics.median(values) * 1e6:.2f})")
        rows.append(f"{layer:<14}{mask:<6}{data:<8}{name:<13}{cells[0]:>15}{cells[1]:>15}")
    return "\n".join(rows)


def records(errors: Errors) -> list[dict[str, Any]]:
    """Worst and median of every tensor, and the seed of the worst."""
    names = ("layer", "mask", "data", "tensor", "algorithm")
    return [
        {
            **dict(zip(names, key, strict=True)),
            "worst": max(values),
            "median": statistics.median(values),
            "seed": values.index(max(values)),
        }
        for key, values in errors.items()
    ]


def main() -> None:
    names = [layer.name for layer in LAYERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="inputs of each layer (default: 3)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="layers (default: all)")
    parser.add_argument("--threads", type=int, help="threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="file to write, with every tensor by itself")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    errors = measure([layer for layer in LAYERS if layer.name in options.only], options.seeds)
    print(table(errors))
    if options.json:
        about = {
            "seeds": options.seeds,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
        }
        options.json.write_text(json.dumps({**about, "errors": records(errors)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
