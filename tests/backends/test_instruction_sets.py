"""The CPU kernels are compiled once for each instruction set: the slower ones pass the tests as well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.deep

OPERATORS = [
    *("test_partial_conv2d.py", "test_msfef.py", "test_upcat_partial_conv2d.py"),
    *("test_winograd.py", "test_winograd_choice.py", "test_winograd_values.py", "test_depthwise.py"),
]
#: Torch's own names in ATEN_CPU_CAPABILITY, and what the kernels make of them.
CAPABILITIES = {"default": "baseline", "avx2": "avx2"}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_operators(capability):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    chosen = subprocess.check_output(
        [sys.executable, "-c", "import torch, pconv_ext._C as c; print(c.instruction_set)"],
        env=environment,
        text=True,
        cwd="/",
    ).strip()
    assert chosen in (CAPABILITIES[capability], "baseline")  # baseline on processors without AVX2
    operators = Path(__file__).parents[1] / "operators"
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *(operators / name for name in OPERATORS),
        ],
        env=environment,
        capture_output=True,
        text=True,
        cwd=operators,
    )
    assert run.returncode == 0, run.stdout[-5000:]
