"""Milliseconds of a form's call: as `pconv-ext tune` times backends, gradients cleared outside of the time.

Devices are "cpu" and "cuda".
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from measure.forms import Form
from operators.declaration import Problem

MOST_INPUT_SETS = 16


def _of_this_checkout(name: str) -> ModuleType:
    """A module of the package that needs none of it, by its path: `against` imports an earlier package."""
    file = Path(__file__).resolve().parents[2] / "pconv_ext" / "_tuning" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"measure.{name}_of_the_package", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_timing = _of_this_checkout("timing")
cudnn_search = _timing.cudnn_search


def input_sets(problem: Problem) -> int:
    """How many copies of the inputs make twice the GPU's L2 cache; 1 where they outgrow it, and on a CPU."""
    if not problem.features[0].is_cuda:
        return 1
    cache = torch.cuda.get_device_properties(problem.features[0].device).L2_cache_size
    nbytes = sum(t.nbytes for t in [*problem.features, *problem.weights])
    return 1 if nbytes >= cache else min(MOST_INPUT_SETS, math.ceil(2 * cache / nbytes))


def step_of(form: Form, grad_out: Tensor | None) -> Callable[[], None]:
    """One timed call: forward without gradients, or forward and backward where `grad_out` is given."""

    def forward() -> None:
        with torch.no_grad():
            form.run()

    def forward_backward() -> None:
        form.run()[0].backward(grad_out)

    return forward if grad_out is None else forward_backward


def host_ms(form: Form, grad_out: Tensor | None) -> float:
    """Milliseconds the host takes to issue one call; where that is the form's whole time, the GPU waits."""
    return _timing.cuda_sample_ms(_step(form, grad_out), 5)[1]


def interleaved(
    forms: Sequence[Form],
    grad_out: Tensor | None,
    device: str,
    min_rounds: int,
    max_rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Milliseconds a call, by form, one sample of each form a round, in a new random order each round.

    Rounds go on for `seconds`, but at least `min_rounds` and at most `max_rounds` of them. The i-th samples
    of all forms belong to one round, so their ratios cancel what slows the whole machine for a while.
    """
    steps = [_step(form, grad_out) for form in forms]
    return _timing.interleaved(steps, device, min_rounds, max_rounds, seconds)


def _step(form: Form, grad_out: Tensor | None) -> object:
    return _timing.Step(form.name, step_of(form, grad_out), form.clear_gradients)
