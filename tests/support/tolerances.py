"""How far a backend may be from the float64 reference, by dtype, and why.

Errors are measured against the scale of the tensor, ``|actual - expected| <= relative * (|expected| + rms)``
with rms that of ``expected``, because a sum of many products cancels: an element near zero carries the error
of its terms. The inputs are the same numbers on both sides (drawn in the dtype of the test, then widened to
float64).
"""

from typing import NamedTuple

import torch

#: Backends with a GPU's tolerances, refusals and slowness where there is no GPU.
GPU_BACKENDS = ("cuda", "triton")


class Tolerance(NamedTuple):
    relative: float
    provenance: str


TOLERANCES = {
    torch.float64: Tolerance(
        1e-12, "eps 2.2e-16; the largest error measured is 1e-14, and a wrong formula shows at 1e-3"
    ),
    torch.float32: Tolerance(
        2e-5, "eps 1.2e-7; the largest error measured is 4e-6, in sums of some thousand products"
    ),
    torch.bfloat16: Tolerance(
        8e-3, "a float32 result rounded once: at most 2^-8 = 3.9e-3 of it, measured 3.2e-3; times 2"
    ),
    torch.float16: Tolerance(
        1e-3, "a float32 result rounded once: at most 2^-11 = 4.9e-4 of it, measured 3.9e-4; times 2"
    ),
}
#: The GPU's backends and "dense" fold the weights and scale the gradients in the dtype of the products'
#: operands, so every product carries roundings of its own, which average out in the sum.
GPU_TOLERANCES = TOLERANCES | {
    torch.bfloat16: Tolerance(
        4e-2, "a result and two operands rounded, 2^-8 each; on tiny maps measured 2.2e-2, times 2"
    ),
    torch.float16: Tolerance(
        5e-3, "a result and two operands rounded, 2^-11 each; on tiny maps measured 2.3e-3, times 2"
    ),
}
#: float32 with products in tf32, 10 bits of mantissa: what torch.backends.cudnn.conv.fp32_precision allows.
TF32 = Tolerance(2e-2, "both operands rounded to 2^-11, in sums of up to some thousand products")


def error_of(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error of finite `actual` against `expected`, of the scale above; 0 of empty tensors."""
    actual, expected = actual.detach().double(), expected.detach().double()
    if not expected.numel():
        return 0.0
    scale = expected.abs() + expected.square().mean().sqrt()
    return ((actual - expected).abs() / scale.clamp(min=1e-300)).max().item()


def assert_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    dtype: torch.dtype,
    what: str,
    backend: str = "cpu",
    limit: float | None = None,
) -> None:
    """Compare `actual`, computed in `dtype` by `backend`, with `expected` in float64; `limit` for another."""
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, not {list(expected.shape)}"
    assert actual.isfinite().all(), f"{what}: {int((~actual.isfinite()).sum())} values are not finite"
    error = error_of(actual, expected)
    if limit is None:
        limit = (GPU_TOLERANCES if backend in (*GPU_BACKENDS, "dense") else TOLERANCES)[dtype].relative
    assert error <= limit, f"{what}: error {error:.2e} of its scale, {dtype} allows {limit:.1e}"
