"""What nvcc makes of the CUDA kernels, which no GPU is needed to see.

Other versions make other code, so the library is the one that `make dist` has built with the Makefile's:
`make deep` names it in PCONV_EXT_TEST_WHEEL, the folder of an unpacked wheel.
"""

import os
from pathlib import Path

import cuda_machine_code
import pytest
from pconv_ext.kernels import cuda

pytestmark = pytest.mark.deep

PINNED = 13000  # CUDA 13.0


@pytest.fixture(scope="module")
def kernels():
    wheel = os.environ.get("PCONV_EXT_TEST_WHEEL")
    assert wheel, "these tests need a wheel that a pinned compiler has made: make deep"
    library = Path(wheel, "pconv_ext", "libpconv_cuda.so")
    _, toolkit, _ = cuda.build_of(library)
    assert toolkit == PINNED, f"what is asserted is true of CUDA {PINNED}, this is {toolkit}"
    return cuda_machine_code.figures(library)


def test_both_generations(kernels):
    names = {}
    for kernel in kernels:
        names.setdefault(kernel["architecture"], set()).add(kernel["kernel"])
    assert {"sm_80", "sm_90a"} <= names.keys()
    assert names["sm_80"] == names["sm_90a"]


def test_no_spills(kernels):
    assert [kernel for kernel in kernels if kernel["stack"] or kernel["STL"] or kernel["LDL"]] == []


def test_tensor_cores(kernels):
    """In every matrix kernel but that of float32 without tf32, and copies in flight beside them."""
    names = ("_matmul<", "few_inputs<", "few_inputs_gradients<")
    matrix = [kernel for kernel in kernels if any(name in kernel["kernel"] for name in names)]
    assert len(matrix) > 100
    assert all(any(name in kernel["kernel"] for kernel in matrix) for name in names)
    for kernel in matrix:
        exact = "<float" in kernel["kernel"]
        assert (kernel["HMMA"] > 0) == (not exact), kernel
        assert kernel["LDGSTS"] > 0, kernel
        if exact:
            assert kernel["FFMA"] > 0, kernel
