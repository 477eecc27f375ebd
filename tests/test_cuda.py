"""The tests of the Triton kernels with the CUDA kernels in their place, in the emulator or on a GPU."""

import emulated_cuda
import pytest
import test_triton
import torch
from pconv_ext.kernels import cuda, launch, tuning
from test_triton import *  # noqa: F403  (the tests, and the fixture that they are available)

from pconv_ext import _cuda, _triton


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if torch.cuda.is_available():
        return cuda.load(_cuda.LIBRARY)
    return cuda.load(emulated_cuda.build(tmp_path_factory.mktemp("emulated")))


@pytest.fixture(autouse=True)
def in_the_place_of_tritons(kernels, monkeypatch):
    monkeypatch.setattr(_triton, "_kernels", lambda: kernels)
    assert test_triton.BACKEND == "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_configuration(dtype, monkeypatch):
    """Those of the precision that is computed in: the kernels are compiled for no others."""
    choose = tuning.gather_blocks
    monkeypatch.setattr(
        tuning, "gather_blocks", lambda *shape, dtype=dtype: choose(*shape[:4], launch.precision(dtype))
    )
    test_triton.test_every_configuration(dtype, monkeypatch)
