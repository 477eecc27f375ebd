"""The tests of the Triton kernels with the CUDA kernels in their place, in the emulator or on a GPU."""

import pytest
import test_triton
import torch
from pconv_ext.kernels import launch, tuning
from test_triton import *  # noqa: F403  (the tests, and the fixture that they are available)

from pconv_ext import _cuda, _triton


@pytest.fixture(autouse=True)
def in_the_place_of_tritons(cuda_kernels, monkeypatch):
    monkeypatch.setattr(_triton, "_kernels", lambda: cuda_kernels)
    assert test_triton.BACKEND == "triton"


def test_a_list_of_many_blocks(cuda_kernels):
    """More than the blocks whose counts each block of `compact` adds up by itself."""
    block, n_blocks, segments, pad = 64, 1100, 2, 64
    q = block * n_blocks
    state = torch.randint(4, (segments, q), dtype=torch.int8)
    ints = torch.arange(2 * segments * q, dtype=torch.int32).view(2, segments, q)
    words = torch.arange(segments * q).view(1, segments, q)
    by_block = state.view(segments, n_blocks, block)
    counts = torch.stack([(by_block == c).sum(2) for c in range(3)], 1).to(torch.int32)
    capacity = q + 4 * pad
    rows, bits = (
        torch.empty(2, segments, capacity, dtype=torch.int32),
        torch.empty(1, segments, capacity).long(),
    )
    limits = torch.empty(segments, 3, dtype=torch.int32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = [tensor.to(device) for tensor in (state, ints, words, counts, rows, bits, limits)]
    cuda_kernels.compact[(n_blocks, segments)](
        *given, q, n_blocks, capacity, INTS=2, WORDS=1, PAD=pad, BLOCK=block
    )  # fmt: skip
    rows, bits, limits = (tensor.cpu() for tensor in given[4:])
    for segment in range(segments):
        start = 0
        for c in range(3):
            (members,) = (state[segment] == c).nonzero(as_tuple=True)
            end = start + -(-len(members) // pad) * pad
            used, rest = slice(start, start + len(members)), slice(start + len(members), end)
            assert torch.equal(rows[:, segment, used], ints[:, segment, members])
            assert torch.equal(bits[:, segment, used], words[:, segment, members])
            assert (rows[0, segment, rest] == -1).all()
            assert not rows[1, segment, rest].any()
            assert not bits[0, segment, rest].any()
            assert limits[segment, c] == end
            start = end


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
