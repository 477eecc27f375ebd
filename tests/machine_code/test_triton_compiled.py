"""What Triton's compiler makes of the kernels for sm_80 and sm_90, which no GPU is needed to see.

Other versions make other code, so it is that of the Makefile: `make deep` brings it.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.deep

PINNED = "3.6.0"
SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "triton_machine_code.py"
#: The least that a block may use on any chip of the generation: sm_86, sm_89 and sm_120 have 99 KiB.
SHARED_LIMIT = 99 * 1024
TENSOR_CORE = {"sm_80": "HMMA", "sm_90": "HGMMA"}
#: Windows of several words of bits, numbers of channels that are no multiple of 8: correct, not tuned.
UNTUNED = ("wide", "odd channels")


@pytest.fixture(scope="module", params=[80, 90], ids=["sm_80", "sm_90"])
def kernels(request, tmp_path_factory):
    """Figures of every kernel and every configuration, compiled in a process without the interpreter."""
    found = importlib.metadata.version("triton")
    assert found == PINNED, f"what is asserted is true of Triton {PINNED}, this is {found}: make deep"
    output = tmp_path_factory.mktemp("compiled") / "figures.json"
    run = subprocess.run(
        [sys.executable, SCRIPT, "--brief", "--capability", str(request.param), "--output", output],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(output.read_text())["kernels"]
    assert {kernel["gpu"] for kernel in found} == {f"sm_{request.param}"}
    return found


def matrix(kernels):
    return [kernel for kernel in kernels if "LDGSTS" in kernel]


def test_every_kernel_is_there(kernels):
    from pconv_ext.kernels import gather, gradients, rows, weights, wgrad

    entry_points = {
        "gather_matmul", "tap_matmul", "scale_gradient", "compact", "forward_windows", "adjoint_windows",
        "upcat_windows", "low_adjoint_windows", "fold_bias", "fold_low", "pack_taps", "pack_rows", "finish",
    }  # fmt: skip
    modules = (gather, gradients, rows, weights, wgrad)
    assert all(any(hasattr(module, name) for module in modules) for name in entry_points)
    assert {kernel["kernel"] for kernel in kernels} == entry_points


def test_nothing_spills(kernels):
    spilling = [kernel for kernel in kernels if kernel["stack"]]
    assert [
        k for k in spilling if not k["layer"].startswith(UNTUNED) or k["kernel"].endswith("_matmul")
    ] == []


def test_shared_memory_fits(kernels):
    assert [kernel for kernel in kernels if kernel["shared"] > SHARED_LIMIT] == []


def test_matrices_are_multiplied_by_tensor_cores(kernels):
    seen = set()
    for kernel in matrix(kernels):
        seen.add((kernel["kernel"], kernel["precision"]))
        instruction = "FFMA" if kernel["precision"] == "ieee" else TENSOR_CORE[kernel["gpu"]]
        assert kernel[instruction] > 0, kernel
    assert seen == {(name, p) for name in ("gather_matmul", "tap_matmul") for p in ("ieee", "tf32")}


def test_asynchronous_copies_stay_in_flight(kernels):
    for kernel in matrix(kernels):
        if not kernel["layer"].startswith(UNTUNED):
            assert kernel["LDGSTS"] > 0, kernel
            assert kernel["copies_in_flight"] > 0, kernel
