"""One layer, ours beside the plain convolution, in both directions: one process of `against`.

Measures whichever `pconv_ext` is first on the path, perhaps that of an earlier commit. So nothing of the
package is used here, or in what is imported here, but its public functions; the inputs come from a file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import pconv_ext
from measure.correctness import Truth, check, truth
from measure.forms import Form, ours, plain
from measure.timing import interleaved
from names import FORWARD, TRAINING
from operators import LAYERS
from operators.declaration import Problem

MIN_ROUNDS, MAX_ROUNDS = 5, 500


def write_problem(problem: Problem, path: Path) -> None:
    """With what its results must be, so that both versions get the same and are checked against the same."""
    expected = truth(problem)
    parts = {
        "features": [x.detach() for x in problem.features],
        "masks": problem.masks,
        "weights": [weight.detach() for weight in problem.weights],
        "biases": [bias.detach() for bias in problem.biases],
        "scales": None if problem.scales is None else problem.scales.detach(),
    }
    exact = {
        "grad_out": expected.grad_out,
        "out": expected.out.float(),
        "new_mask": expected.new_mask,
        "gradients": [gradient.float() for gradient in expected.gradients],
    }
    torch.save({"layer": problem.layer.name, "problem": parts, "truth": exact}, path)


def read_problem(path: Path) -> tuple[Problem, Truth]:
    stored = torch.load(path)
    problem = Problem(LAYERS[stored["layer"]], **stored["problem"])
    return problem.to("cpu", problem.features[0].dtype), Truth(**stored["truth"])


def measure(path: Path, seconds: float) -> list[dict[str, Any]]:
    """A record of each direction. `package` says whose `pconv_ext` it was."""
    problem, expected = read_problem(path)
    forms: list[Form] = [ours(problem, "cpu"), plain(problem)]
    check(forms[0], problem, expected)
    records = []
    for direction, grad_out in ((FORWARD, None), (TRAINING, expected.grad_out)):
        samples = interleaved(forms, grad_out, "cpu", MIN_ROUNDS, MAX_ROUNDS, seconds)
        records.append(
            {
                "layer": problem.layer.name,
                "direction": direction,
                "package": str(Path(pconv_ext.__file__).parent),
                "ours": [forms[0].name],
                "forms": {
                    name: {"samples_ms": [round(ms, 4) for ms in taken]} for name, taken in samples.items()
                },
            }
        )
    return records


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", type=Path, metavar="FILE", help="the layer and its inputs")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    print(json.dumps(measure(options.problem, options.seconds)))
