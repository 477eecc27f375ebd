"""The problems that are measured: a layer's parameters, and the features and masks that reach it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

import pconv_ext
from measure.inputs import make_mask, photographs
from operators import LAYERS, NETWORK, OPERATORS, call
from operators.declaration import Layer, Problem


class Network:
    """The paper's network with random weights of a fixed seed, run by the reference as far as is asked for.

    Each activation is normalised over its image and channel (over its channel in the decoder) before the
    nonlinearity, as in table 2, so values stay near unit scale however deep the layer.
    """

    def __init__(self, mask: str, batch: int, size: int, device: str) -> None:
        self._next = iter(NETWORK)
        self._inputs: dict[str, Problem] = {}
        self._x = photographs(batch, size).to(device)
        plane = make_mask(mask, batch, size)
        self._mask = None if plane is None else plane.to(device)

    def problem(self, name: str) -> Problem:
        layer = LAYERS[name]
        if layer.input_of:
            like = self.problem(layer.input_of)
            return Problem(layer, like.features, like.masks, *parameters(layer, self._x.device))
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
    c_in, c_out = sum(layer.in_channels) // layer.groups, layer.out_channels

    def normal(*shape: int, std: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * std).to(device)

    weights = [normal(c_out, c_in, k, k, std=math.sqrt(2 / (c_in * k * k))) for k in layer.kernel_sizes]
    biases = [normal(c_out, std=0.1) for _ in layer.kernel_sizes]
    n = len(layer.kernel_sizes)
    scaled = OPERATORS[layer.operator].scaled
    scales = 1 / n + normal(n, c_out, std=0.05) if scaled else None
    return weights, biases, scales


@lru_cache(maxsize=4)
def network(mask: str, batch: int, size: int, device: str = "cpu") -> Network:
    return Network(mask, batch, size, device)


def build_problem(name: str, mask: str, batch: int, size: int, device: str) -> Problem:
    """The layer's inputs and the mask that reached it; "quarter" is a hole in the layer's own input."""
    if mask != "quarter":
        return network(mask, batch, size, device).problem(name)
    problem = network("none", batch, size, device).problem(name)
    return replace(problem, masks=[make_mask("quarter", batch, x.shape[-1]) for x in problem.features])
