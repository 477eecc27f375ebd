"""Whether what is installed here computes what it should: `python -m pconv_ext doctor`. Needs torch alone.

Every backend that can be used here, every operator and dtype, forward and backward, on small maps with holes
whose values are NaN, against `pconv_ext.reference` in float64: some seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import info
from ._backends import _BACKENDS, backends, candidates
from ._tuning.accuracy import DTYPES, Check, check, limit_of, truth
from ._tuning.problems import Problem, call_of, of_shape

#: Of each operator one, of an even and an odd number of tiles, some of them dead.
EXAMPLES = (
    "partial_conv2d:2x32x20x22:32:3",
    "msfef:2x16x40x44:32:3,5,7:2",
    "upcat_partial_conv2d:2x32+16x32x36:16:3",
)


def checks() -> Iterator[Check]:
    """All of them, one after another."""
    for name, (available, _) in backends().items():
        device_type = _BACKENDS[name].device_type
        if not available or device_type is None:
            continue
        device = torch.device(device_type)
        for example in EXAMPLES:
            for dtype in DTYPES[device_type]:
                if one := _checked(name, of_shape(example), device, dtype):
                    yield one


def _checked(backend: str, problem: Problem, device: torch.device, dtype: torch.dtype) -> Check | None:
    """None where the backend says that it does not compute in that dtype."""
    limit = limit_of(dtype, backend)
    try:
        true = truth(problem, device, dtype, torch.device("cpu"))
        refusal = candidates(call_of(problem.operator, true.arguments), [backend])[backend]
        return None if refusal else check(backend, true, limit)
    except Exception as error:  # a device that is lost, or full
        told = str(dtype).removeprefix("torch.")
        return Check(backend, problem.operator, told, float("nan"), limit, f"{type(error).__name__}: {error}")


def report() -> tuple[str, bool]:
    """What `pconv_ext.info` says, the checks, a line each, and a verdict; whether all passed."""
    lines, failed, count = [info.report(), ""], [], 0
    for one in checks():
        count += 1
        what = f"{one.backend} {one.operator} {one.dtype}"
        if not one.passed:
            failed.append(what)
        lines.append(f"{what:<44} {one.verdict}")
    if failed:
        lines += ["", f"{len(failed)} of {count} checks failed: {', '.join(failed)}"]
    else:
        lines += ["", f"all {count} checks passed"]
    return "\n".join(lines), not failed
