"""One case from its name to its record: build it, check every form, time them, measure their memory."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import baselines
import harness
import hybrid
import torch
from layers import IMAGE_SIZE, LAYERS, Problem, make_mask, network
from names import COMPILED, DIRTY, FORWARD, UNKNOWN

import pconv_ext
from pconv_ext.info import cpuinfo, version

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = {"cpu": ["cpu"], "cuda": ["triton", "cuda"]}  # in the order of "auto"
#: What figures depend on, as patterns of git.
MEASURED = (
    *("csrc", "kernels", "pconv_ext", "buildtools", "setup.py", "pyproject.toml", "benchmarks"),
    *(":!*.md", ":!benchmarks/results"),
)
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
    expected: harness.Truth
    forms: list[baselines.Form]
    errors: dict[str, float]
    missing: dict[str, str]


def our_backends(device: str) -> list[str]:
    """The compiled backends available here, else the reference, so that a run always has a column of ours."""
    available = pconv_ext.backends()
    return [name for name in BACKENDS[device] if available[name][0]] or ["reference"]


def build_problem(case: Case, batch: int, device: str) -> Problem:
    """The layer's inputs and the mask that reached it; "quarter" is a hole in the layer's own input."""
    if case.mask != "quarter":
        return network(case.mask, batch, case.size, device).problem(case.layer)
    problem = network("none", batch, case.size, device).problem(case.layer)
    return replace(problem, masks=[make_mask("quarter", batch, x.shape[-1]) for x in problem.features])


def forms_of(problem: Problem, case: Case, device: str) -> list[baselines.Form]:
    """Ours first, the plain convolution last."""
    forms = [baselines.ours(problem, backend) for backend in our_backends(device)]
    forms += [baselines.naive(problem, multi_channel=True), baselines.naive(problem, multi_channel=False)]
    if case.compiled:
        forms.append(baselines.naive(problem, multi_channel=False, compiled=True))
    if device == "cuda":
        forms.append(hybrid.hybrid(problem))
    return [*forms, baselines.plain(problem)]


@lru_cache(maxsize=1)
def prepare(case: Case, settings: Settings) -> Prepared:
    """What both directions of a case share, the check included; so pass it without its direction."""
    device, dtype, last = settings.device, DTYPES[settings.dtype], settings.channels_last
    problem = build_problem(case, case.batch or settings.batch, device).to(device, dtype, last)
    expected = harness.truth(problem)
    errors, missing = {}, {}
    with harness.cudnn_search():
        for form in forms_of(problem, case, device)[:-1]:
            try:
                errors[form.name] = harness.check(form, problem, expected)
            except Exception as error:
                uncompiled = form.name == COMPILED and isinstance(error, RuntimeError)  # say, no C++ compiler
                if not (uncompiled or settings.go_on):
                    raise
                missing[form.name] = str(error).strip().partition("\n")[0] or repr(error)
                form.clear_gradients()
    problems = [problem, *(problem.to(device, dtype, last) for _ in range(harness.input_sets(problem) - 1))]
    copies = zip(*(forms_of(p, case, device) for p in problems), strict=True)
    forms = [baselines.rotating(same) for same in copies if same[0].name not in missing]
    return Prepared(problem, expected, forms, errors, missing)


def measure(case: Case, settings: Settings) -> tuple[dict[str, Any], Prepared]:
    """The case's record, as it goes into `extra_info` and the JSON file."""
    prepared = prepare(replace(case, direction=""), settings)
    problem, forms, device = prepared.problem, prepared.forms, settings.device
    grad_out = None if case.direction == FORWARD else prepared.expected.grad_out
    memory, issuing = {}, {}
    with harness.cudnn_search():
        samples = harness.interleaved(
            forms, grad_out, device, settings.min_rounds, settings.max_rounds, settings.seconds
        )
        for form in forms:
            if case.memory:
                memory[form.name] = harness.peak_memory(form, problem, grad_out, device)
            if device == "cuda":
                issuing[form.name] = round(harness.host_ms(form, grad_out), 4)
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
        "capability": capability() if device == "cuda" else None,
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


def capability() -> str:
    """Of the GPU, such as "9.0"."""
    return "{}.{}".format(*torch.cuda.get_device_capability())


def machine(device: str) -> dict[str, Any]:
    """Versions, processor or GPU, threads and commit; nothing that names the machine itself."""
    result: dict[str, Any] = {
        "pconv_ext": version("pconv_ext"),
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
    if device == "cuda":
        result |= {
            "capability": capability(),
            "triton": version("triton"),
            "cudnn": torch.backends.cudnn.version(),
            "float32 convolutions": torch.backends.cudnn.conv.fp32_precision,
        }
    return result


def _processor() -> str:
    """Its name, which may be that of several generations, and what tells them apart."""
    told = cpuinfo()
    name = told.get("model name", platform.machine())
    return f"{name} (family {told['cpu family']}, model {told['model']})" if "cpu family" in told else name


def _commit() -> str:
    """Of the checkout, "-dirty" where it has changed since. Without history what COMMIT says."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != ROOT:  # inside of another's checkout
            return os.environ.get("COMMIT", UNKNOWN)
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", *MEASURED)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", UNKNOWN)
    return f"{commit}{DIRTY}" if changed else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
