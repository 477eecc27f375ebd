"""One case from its name to its record: build it, check every form, time them, measure their memory."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import baselines
import harness
import torch
from cases import IMAGE_SIZE, LAYERS, Problem, make_mask, network
from names import COMPILED, FORWARD

import pconv_ext

BACKENDS = {"cpu": ["cpu"], "cuda": ["cuda", "triton"]}  # in the order of "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """What is measured once. `batch` 0 is the run's own; `sweep` names the axis along which it is plotted."""

    layer: str
    mask: str
    direction: str
    compiled: bool = False
    batch: int = 0
    size: int = IMAGE_SIZE
    sweep: str = ""

    def __str__(self) -> str:
        varied = {"batch": self.batch, "resolution": self.size}.get(self.sweep, "")
        parts = [self.layer, self.mask, self.sweep, str(varied), self.direction.replace(" ", "")]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Settings:
    """How a run measures: where, on what, and for how long each case."""

    device: str = "cpu"
    dtype: str = "float32"
    batch: int = 4
    min_rounds: int = 5
    max_rounds: int = 25
    seconds: float = 2.5


@dataclass
class Prepared:
    """A checked case; `missing` says why a form is not there."""

    problem: Problem
    expected: harness.Truth
    forms: list[baselines.Form]
    errors: dict[str, float]
    missing: dict[str, str]


def our_backends(device: str) -> list[str]:
    """The compiled backends available here, else the reference, so that a run always has a column of ours."""
    available = pconv_ext.backends()
    return [name for name in BACKENDS[device] if available[name][0]] or ["reference"]


def build_problem(case: Case, batch: int) -> Problem:
    """The layer's inputs and the mask that reached it; "quarter" is a hole in the layer's own input."""
    if case.mask != "quarter":
        return network(case.mask, batch, case.size).problem(case.layer)
    problem = network("none", batch, case.size).problem(case.layer)
    return replace(problem, masks=[make_mask("quarter", batch, x.shape[-1]) for x in problem.features])


@lru_cache(maxsize=1)
def prepare(case: Case, settings: Settings) -> Prepared:
    """What both directions of a case share, the check included; so pass it without its direction."""
    problem = build_problem(case, case.batch or settings.batch).to(settings.device, DTYPES[settings.dtype])
    forms = [baselines.ours(problem, backend) for backend in our_backends(settings.device)]
    forms += [baselines.naive(problem, multi_channel=True), baselines.naive(problem, multi_channel=False)]
    if case.compiled:
        forms.append(baselines.naive(problem, multi_channel=False, compiled=True))
    expected = harness.truth(problem)
    errors, missing = {}, {}
    for form in list(forms):
        try:
            errors[form.name] = harness.check(form, problem, expected)
        except RuntimeError as error:
            if form.name != COMPILED:
                raise
            missing[form.name] = str(error).strip().splitlines()[0]  # say, no C++ compiler
            forms.remove(form)
    return Prepared(problem, expected, [*forms, baselines.plain(problem)], errors, missing)


def measure(case: Case, settings: Settings) -> tuple[dict[str, Any], Prepared]:
    """The case's record, as it goes into `extra_info` and the JSON file."""
    prepared = prepare(replace(case, direction=""), settings)
    problem, forms = prepared.problem, prepared.forms
    grad_out = None if case.direction == FORWARD else prepared.expected.grad_out
    samples = harness.interleaved(
        forms, grad_out, settings.device, settings.min_rounds, settings.max_rounds, settings.seconds
    )
    memory = {form.name: harness.peak_memory(form, problem, grad_out, settings.device) for form in forms}
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
        "ours": [form.name for form in forms if form.name in our_backends(settings.device)],
        "forms": {
            name: {
                "samples_ms": [round(ms, 4) for ms in samples[name]],
                "peak_mb": memory[name],
                "error": prepared.errors.get(name),
            }
            for name in samples
        },
        "missing": prepared.missing,
    }
    return record, prepared


def machine(device: str) -> dict[str, Any]:
    """Versions, processor or GPU, threads and commit; nothing that names the machine itself."""
    return {
        "pconv_ext": _version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "commit": _commit(),
        "backends": {name: reason or "available" for name, (_, reason) in pconv_ext.backends().items()},
    }


def _version() -> str:
    try:
        return importlib.metadata.version("pconv_ext")
    except importlib.metadata.PackageNotFoundError:
        return "checkout, not installed"


def _processor() -> str:
    lines: Sequence[str] = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
