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


def test_refusals():
    weight = torch.zeros(2, 3, 1, 1)
    x = torch.zeros(1, 3, 4, 4)
    conv = (x, None, weight, None, [129, 1], [0] * 4, [1, 1], 1)
    assert "strides of at most 128, stride is [129, 1]" in _cuda.refusal("partial_conv2d", conv)
    assert _cuda.refusal("partial_conv2d", (*conv[:4], [1, 1], *conv[5:])) == ""
    scales = torch.zeros(32, 2)
    assert "at most 31 kernels, weights has 32" in _cuda.refusal(
        "msfef", (x, None, [weight] * 32, [], scales, [1])
    )
