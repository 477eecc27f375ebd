"""One case from its name to its record: build it, check every form, time them, measure their memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from measure import timing
from measure.correctness import Truth, check, truth
from measure.forms import Form, forms_of, our_backends, rotating
from measure.inputs import IMAGE_SIZE
from measure.memory import peak_memory
from measure.problems import build_problem
from names import COMPILED, FORWARD
from operators import LAYERS
from operators.declaration import Problem
from pconv_ext._machine import capability

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """What is measured once. `batch` 0 is the run's own; `sweep` names the axis along which it is plotted.

    `compiled` adds the form under torch.compile, and without `memory` peaks are left out; both take time.
    """

    layer: str
    mask: str
    direction: str
    compiled: bool = False
    memory: bool = True
    batch: int = 0
    size: int = IMAGE_SIZE
    sweep: str = ""

    def __str__(self) -> str:
        varied = {"batch": self.batch, "resolution": self.size}.get(self.sweep, "")
        parts = [self.layer, self.mask, self.sweep, str(varied), self.direction.replace(" ", "")]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Settings:
    """How a run measures: where, on what, and for how long each case.

    With `go_on` a form that fails or is wrong is left out and named in the record instead of ending its case.
    """

    device: str = "cpu"
    dtype: str = "float32"
    batch: int = 4
    channels_last: bool = False
    min_rounds: int = 5
    max_rounds: int = 25
    seconds: float = 2.5
    go_on: bool = False


#: A GPU is filled by batches of 32, and cuDNN's fast kernels want channels-last.
DEFAULTS = {
    "cpu": Settings(),
    "cuda": Settings("cuda", "bfloat16", 32, channels_last=True, max_rounds=100),
}


@dataclass
class Prepared:
    """A checked case; `missing` says why a form is not there."""

    problem: Problem
    expected: Truth
    forms: list[Form]
    errors: dict[str, float]
    missing: dict[str, str]


@lru_cache(maxsize=1)
def prepare(case: Case, settings: Settings) -> Prepared:
    """What both directions of a case share, the check included; so pass it without its direction."""
    device, dtype, last = settings.device, DTYPES[settings.dtype], settings.channels_last
    problem = build_problem(case.layer, case.mask, case.batch or settings.batch, case.size, device)
    problem = problem.to(device, dtype, last)
    expected = truth(problem)
    errors, missing = {}, {}
    with timing.cudnn_search():
        for form in forms_of(problem, device, case.compiled)[:-1]:
            try:
                errors[form.name] = check(form, problem, expected)
            except Exception as error:
                uncompiled = form.name == COMPILED and isinstance(error, RuntimeError)  # say, no C++ compiler
                if not (uncompiled or settings.go_on):
                    raise
                missing[form.name] = str(error).strip().partition("\n")[0] or repr(error)
                form.clear_gradients()
    problems = [problem, *(problem.to(device, dtype, last) for _ in range(timing.input_sets(problem) - 1))]
    copies = zip(*(forms_of(p, device, case.compiled) for p in problems), strict=True)
    forms = [rotating(same) for same in copies if same[0].name not in missing]
    return Prepared(problem, expected, forms, errors, missing)


def measure(case: Case, settings: Settings) -> tuple[dict[str, Any], Prepared]:
    """The case's record, as it goes into `extra_info` and the JSON file."""
    prepared = prepare(replace(case, direction=""), settings)
    problem, forms, device = prepared.problem, prepared.forms, settings.device
    grad_out = None if case.direction == FORWARD else prepared.expected.grad_out
    memory, issuing = {}, {}
    with timing.cudnn_search():
        samples = timing.interleaved(
            forms, grad_out, device, settings.min_rounds, settings.max_rounds, settings.seconds
        )
        for form in forms:
            if case.memory:
                memory[form.name] = peak_memory(form, problem, grad_out, device)
            if device == "cuda":
                issuing[form.name] = round(timing.host_ms(form, grad_out), 4)
                form.clear_gradients()
    planes = [1.0 if m is None else m.float().mean().item() for m in problem.masks]
    record = {
        "operator": LAYERS[case.layer].operator,
        "layer": case.layer,
        "mask": case.mask,
        "hole_ratio": [round(1 - valid, 4) for valid in planes],
        "direction": case.direction,
        "sweep": case.sweep,
        "batch": case.batch or settings.batch,
        "resolution": case.size,
        "dtype": settings.dtype,
        "shapes": [list(x.shape) for x in problem.features],
        "out_channels": LAYERS[case.layer].out_channels,
        "taps": LAYERS[case.layer].taps,
        "capability": capability(torch.device(device)) if device == "cuda" else None,
        "ours": [form.name for form in forms if form.name in our_backends(device)],
        "forms": {
            name: {
                "samples_ms": [round(ms, 4) for ms in samples[name]],
                "peak_mb": memory.get(name),
                "error": prepared.errors.get(name),
                **({"host_ms": issuing[name]} if name in issuing else {}),
            }
            for name in samples
        },
        "missing": prepared.missing,
    }
    return record, prepared
