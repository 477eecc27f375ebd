"""Whether what is installed here computes what it should: `python -m pconv_ext doctor`. Needs torch alone.

Every backend that can be used here, every operator and dtype, forward and backward, on small maps with holes
whose values are NaN, against `pconv_ext.reference` in float64: some seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import functional, info
from ._backends import _BACKENDS, backends

#: How far from the reference, of |value| + rms: twice what rounding in the dtype makes, or more on a GPU,
#: whose operands are of that dtype too.
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
GPU_LIMITS = {torch.float32: 2e-2, torch.bfloat16: 4e-2, torch.float16: 5e-3}

Arguments = tuple[Any, ...]


class Check(NamedTuple):
    """What came of an operator in a dtype: the largest error, or why there is none."""

    backend: str
    operator: str
    dtype: str
    error: float
    limit: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason and self.error <= self.limit


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _mask(x: Tensor) -> Tensor:
    """Of a rectangle's hole, whose values become NaN."""
    mask = torch.ones(x.shape[0], 1, *x.shape[2:], dtype=torch.float64)
    mask[:, :, 5:14, 7:15] = 0
    x.masked_fill_(mask == 0, float("nan"))
    return mask


def _partial_conv2d() -> Arguments:
    x = _normal(2, 32, 20, 22)
    return x, _mask(x), _normal(32, 32, 3, 3) / 17, _normal(32), 1, 1


def _msfef() -> Arguments:
    x = _normal(2, 16, 40, 44)
    weights = [_normal(32, 16, k, k) / (4 * k) for k in (3, 5, 7)]
    return x, _mask(x), weights, [_normal(32) for _ in weights], _normal(3, 32), 2


def _upcat_partial_conv2d() -> Arguments:
    low, skip = _normal(2, 32, 16, 18), _normal(2, 16, 32, 36)
    return low, _mask(low), skip, _mask(skip), _normal(16, 48, 3, 3) / 20, _normal(16)


OPERATORS: dict[str, Callable[[], Arguments]] = {
    "partial_conv2d": _partial_conv2d,
    "msfef": _msfef,
    "upcat_partial_conv2d": _upcat_partial_conv2d,
}


def checks() -> Iterator[Check]:
    """All of them, one after another."""
    for name, (available, _) in backends().items():
        device = _BACKENDS[name].device_type
        if not available or device is None:
            continue
        limits = LIMITS if device == "cpu" else GPU_LIMITS
        for operator, make in OPERATORS.items():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                arguments = make()
            for dtype, limit in limits.items():
                yield _check(name, device, operator, arguments, dtype, limit)


def _check(
    backend: str, device: str, operator: str, arguments: Arguments, dtype: torch.dtype, limit: float
) -> Check:
    told = str(dtype).removeprefix("torch.")
    try:
        # The same numbers on both sides.
        given = _moved(arguments, lambda t: t.to(dtype))
        actual = _results(operator, _moved(given, lambda t: t.to(device)), backend, dtype)
        expected = _results(operator, _moved(given, lambda t: t.double()), "reference", dtype)
    except Exception as error:  # whatever a backend meets is what its user must know
        return Check(backend, operator, told, float("nan"), limit, f"{type(error).__name__}: {error}")
    largest = max(_error(a.cpu().double(), e) for a, e in zip(actual, expected, strict=True))
    return Check(backend, operator, told, largest, limit)


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(one, move) for one in value)
    return move(value) if isinstance(value, Tensor) else value


def _results(operator: str, arguments: Arguments, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """The output, the new mask and the gradients, for one in `dtype`, of all that are no masks."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        is_mask = tensor.dim() == 4 and tensor.shape[1] == 1
        if not is_mask:
            leaves.append(tensor.detach().clone().requires_grad_())
        return tensor if is_mask else leaves[-1]

    out, new_mask = getattr(functional, operator)(*_moved(arguments, leaf), backend=backend)
    slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(dtype)
    return [out.detach(), new_mask, *torch.autograd.grad(out, leaves, slope.to(out.device, out.dtype))]


def _error(actual: Tensor, expected: Tensor) -> float:
    scale = expected.abs() + expected.square().mean().sqrt()
    error = ((actual - expected).abs() / scale.clamp(min=1e-300)).nan_to_num(nan=float("inf"))
    return float(error.max())


def report() -> tuple[str, bool]:
    """What `pconv_ext.info` says, the checks, a line each, and a verdict; whether all passed."""
    lines, failed, count = [info.report(), ""], [], 0
    for check in checks():
        count += 1
        what = f"{check.backend} {check.operator} {check.dtype}"
        if not check.passed:
            failed.append(what)
        verdict = "ok" if check.passed else f"WRONG, at most {check.limit:g}"
        told = " ".join(check.reason.split())[:200] or f"error {check.error:.1e}, {verdict}"
        lines.append(f"{what:<44} {told}")
    if failed:
        lines += ["", f"{len(failed)} of {count} checks failed: {', '.join(failed)}"]
    else:
        lines += ["", f"all {count} checks passed"]
    return "\n".join(lines), not failed
