"""What is measured: the layers of the paper's network (its table 2), the masks, and the photographs."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pconv_ext

PHOTOS = Path(__file__).parent / "photos"
IMAGE_SIZE = 256


@dataclass(frozen=True)
class Layer:
    """One layer of the network; `in_channels` is (C,), or (C_low, C_skip) in a decoder stage."""

    name: str
    operator: str
    in_channels: tuple[int, ...]
    out_channels: int
    kernel_sizes: tuple[int, ...]
    stride: int
    skip: str = ""  # whose input a decoder stage takes as its skip

    @property
    def taps(self) -> int:
        return sum(k * k for k in self.kernel_sizes)


MSFEF = [
    Layer(f"msfef{i}", "msfef", (c_in,), c_out, (3, 5, 7), 2)
    for i, (c_in, c_out) in enumerate([(3, 64), (64, 128), (128, 256), (256, 512)], start=1)
]
PARTIAL_CONV = [Layer(f"pconv{i}", "partial_conv2d", (512,), 512, (3,), 2) for i in range(5, 9)]
UPCAT = [
    Layer(f"upcat{i}", "upcat_partial_conv2d", channels, c_out, (3,), 1, skip)
    for i, (channels, c_out, skip) in enumerate(
        [
            ((512, 512), 512, "pconv8"),
            ((512, 512), 512, "pconv7"),
            ((512, 512), 512, "pconv6"),
            ((512, 512), 512, "pconv5"),
            ((512, 256), 256, "msfef4"),
            ((256, 128), 128, "msfef3"),
            ((128, 64), 64, "msfef2"),
            ((64, 3), 3, "msfef1"),
        ],
        start=9,
    )
]
LAYERS = {layer.name: layer for layer in MSFEF + PARTIAL_CONV + UPCAT}


@dataclass
class Problem:
    """One layer with everything that a call of its operator takes.

    `features` holds x [N, C, H, W], or x_low and skip; `masks` for each of them a float plane [N, 1, H, W]
    or None.
    """

    layer: Layer
    features: list[Tensor]
    masks: list[Tensor | None]
    weights: list[Tensor]
    biases: list[Tensor]
    scales: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        scales = [] if self.scales is None else [self.scales]
        return [t for t in [*self.features, *self.weights, *self.biases, *scales] if t.requires_grad]

    def to(self, device: str, dtype: torch.dtype, channels_last: bool = False) -> Problem:
        """The same values as fresh leaves; all but the photographs themselves require a gradient.

        `channels_last` lays out features and weights so, otherwise they stay as they are.
        """

        def leaf(t: Tensor, requires_grad: bool = True) -> Tensor:
            last = channels_last and t.dim() == 4
            layout = torch.channels_last if last else torch.preserve_format
            copy = t.detach().to(device, dtype, copy=True, memory_format=layout)
            return copy.requires_grad_(requires_grad)

        return Problem(
            self.layer,
            [leaf(t, t.shape[1] != 3) for t in self.features],
            [None if m is None else m.to(device, dtype) for m in self.masks],
            [leaf(t) for t in self.weights],
            [leaf(t) for t in self.biases],
            None if self.scales is None else leaf(self.scales),
        )


def read_png(path: Path) -> np.ndarray:
    """An 8-bit RGB PNG with row filters none, sub and up, as uint8 [H, W, 3]."""
    data, chunks, at = path.read_bytes(), {b"IDAT": b""}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        chunks[kind] = chunks.get(kind, b"") + body
        at += length + 12
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if form != [8, 2, 0, 0, 0]:
        raise ValueError(f"{path.name}: expected a plain 8-bit RGB PNG, got header fields {form}")
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    image = np.zeros((height, width, 3), np.uint8)
    for y, row in enumerate(rows):
        pixels = row[1:].reshape(width, 3)
        if row[0] == 0:
            image[y] = pixels
        elif row[0] == 1:
            image[y] = np.cumsum(pixels, axis=0, dtype=np.uint8)
        elif row[0] == 2:
            image[y] = image[y - 1] + pixels if y else pixels
        else:
            raise ValueError(f"{path.name}: row {y} has filter {row[0]}, expected 0, 1 or 2")
    return image


def photographs(batch: int, size: int) -> Tensor:
    """[batch, 3, size, size] in [-1, 1]; after the last photograph the first again, flipped or shifted."""
    files = sorted(PHOTOS.glob("*.png"))
    images = []
    for i in range(batch):
        image = torch.from_numpy(read_png(files[i % len(files)])).permute(2, 0, 1).float() / 127.5 - 1
        turn = i // len(files)
        image = image.flip(-1) if turn % 2 else image
        images.append(image.roll((turn // 2 * 37, turn // 2 * 53), dims=(-2, -1)))
    stacked = torch.stack(images)
    if size != stacked.shape[-1]:
        stacked = F.interpolate(stacked, size=(size, size), mode="bilinear", antialias=True)
    return stacked.contiguous()


def irregular_hole(size: int, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Strokes of a round brush that wanders over the image until `ratio` of it is hole; bool [size, size]."""
    y, x = np.mgrid[:size, :size]
    hole = np.zeros((size, size), bool)
    left = 0
    while hole.mean() < ratio:
        if left == 0:
            left = int(generator.integers(8, 24))
            centre, angle = generator.uniform(0, size, 2), generator.uniform(0, 2 * math.pi)
            radius = generator.uniform(0.015, 0.05) * size
        hole |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
        angle += generator.uniform(-0.6, 0.6)
        centre = (centre + radius * np.array([math.sin(angle), math.cos(angle)])) % size
        left -= 1
    return hole


def make_mask(kind: str, batch: int, size: int) -> Tensor | None:
    """[batch, 1, size, size] float, 1 = valid, or None.

    `kind`: "none"; "rectangle" (the paper's training masks: each side 0.1 to 0.25 of the height); "irregular"
    (hole ratio 0.3 to 0.4) or "irregular:R" (hole ratio R); "quarter" (a hole of a quarter of each side).
    """
    name, _, wanted = kind.partition(":")
    if name == "none":
        return None
    mask = torch.ones(batch, 1, size, size)
    for i in range(batch):
        generator = np.random.default_rng([i, size])
        if name == "rectangle":
            height, width = (generator.uniform(0.1, 0.25, 2) * size).astype(int)
            top, left = generator.integers(0, size - height), generator.integers(0, size - width)
            mask[i, :, top : top + height, left : left + width] = 0
        elif name == "quarter":
            side = size // 4
            mask[i, :, side : 2 * side, side : 2 * side] = 0
        elif name == "irregular":
            ratio = float(wanted) if wanted else generator.uniform(0.31, 0.39)
            mask[i, 0][torch.from_numpy(irregular_hole(size, ratio, generator))] = 0
        else:
            raise ValueError(f"unknown mask {kind!r}")
    return mask


class Network:
    """The paper's network with random weights of a fixed seed, run by the reference as far as is asked for.

    Each activation is normalised over its image and channel (over its channel in the decoder) before the
    nonlinearity, as in table 2, so values stay near unit scale however deep the layer.
    """

    def __init__(self, mask: str, batch: int, size: int, device: str) -> None:
        self._next = iter(LAYERS.values())
        self._inputs: dict[str, Problem] = {}
        self._x = photographs(batch, size).to(device)
        plane = make_mask(mask, batch, size)
        self._mask = None if plane is None else plane.to(device)

    def problem(self, name: str) -> Problem:
        while name not in self._inputs:
            self._run(next(self._next))
        return self._inputs[name]

    @torch.no_grad()
    def _run(self, layer: Layer) -> None:
        features, masks = [self._x], [self._mask]
        if layer.skip:
            source = self._inputs[layer.skip]
            features, masks = features + source.features[:1], masks + source.masks[:1]
        problem = Problem(layer, features, masks, *parameters(layer, self._x.device))
        self._inputs[layer.name] = problem
        out, self._mask = call(pconv_ext.reference, problem)
        dims = (0, 2, 3) if layer.skip or layer.name == "pconv8" else (2, 3)
        out = (out - out.mean(dims, keepdim=True)) / (out.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
        self._x = F.leaky_relu(out, 0.2 if layer.skip else 0.0)


def parameters(layer: Layer, device: torch.device) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Weights (Kaiming), biases and scales of a layer, the same in every run."""
    generator = torch.Generator().manual_seed([*LAYERS].index(layer.name))
    c_in, c_out = sum(layer.in_channels), layer.out_channels

    def normal(*shape: int, std: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * std).to(device)

    weights = [normal(c_out, c_in, k, k, std=math.sqrt(2 / (c_in * k * k))) for k in layer.kernel_sizes]
    biases = [normal(c_out, std=0.1) for _ in layer.kernel_sizes]
    n = len(layer.kernel_sizes)
    scales = 1 / n + normal(n, c_out, std=0.05) if layer.operator == "msfef" else None
    return weights, biases, scales


@lru_cache(maxsize=4)
def network(mask: str, batch: int, size: int, device: str = "cpu") -> Network:
    return Network(mask, batch, size, device)


def call(namespace: object, problem: Problem, **options: str) -> tuple[Tensor, Tensor]:
    """The problem's operator out of `pconv_ext` or `pconv_ext.reference`."""
    operator = getattr(namespace, problem.layer.operator)
    x, mask, layer = problem.features[0], problem.masks[0], problem.layer
    if layer.operator == "msfef":
        return operator(x, mask, problem.weights, problem.biases, problem.scales, layer.stride, **options)
    weight, bias = problem.weights[0], problem.biases[0]
    if layer.operator == "partial_conv2d":
        return operator(x, mask, weight, bias, layer.stride, layer.kernel_sizes[0] // 2, **options)
    return operator(x, mask, problem.features[1], problem.masks[1], weight, bias, **options)
