"""What the CUDA kernels have that Triton's have not: a library, of some architectures, and its refusals."""

import pytest
import torch
from support.cases import deep_without_gpu

from pconv_ext import _backends
from pconv_ext._geometry import centred
from pconv_ext.ops.call import Call, Source

pytestmark = [*deep_without_gpu]


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


def test_where_a_build_runs():
    def runs(architectures, capability, toolkit=13000, driver=13000):
        return _backends.cuda.unsupported(architectures, toolkit, driver, capability) == ""

    default = "8.0+PTX;9.0a"
    assert all(runs(default, capability) for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
    assert not runs("9.0a", (8, 0))
    assert not runs("9.0a", (10, 0))
    assert not runs("8.6", (8, 0))
    assert runs("8.6", (8, 9))
    assert runs("10.0f 8.0", (10, 3))
    assert not runs("10.0a 8.0", (10, 3))
    assert not runs("9.0a+PTX", (10, 0)), "code of one generation alone"
    assert runs(default, (9, 0), toolkit=13010), "a driver of the same major version is enough"
    assert not runs(default, (10, 0), toolkit=13010), "but not to compile what a newer toolkit wrote"
    assert not runs(default, (9, 0), driver=12080)
    told = _backends.cuda.unsupported(default, 13000, 12080, (9, 0))
    assert "built with CUDA 13.0, this driver knows CUDA 12.8" in told
    assert "built for 9.0a with CUDA 13.0, this GPU has 8.0" in _backends.cuda.unsupported(
        "9.0a", 13000, 13000, (8, 0)
    )


def test_what_the_library_was_built_for():
    if _backends.cuda.REASON:
        assert "built without nvcc" in _backends.cuda.REASON
        return
    architectures, toolkit, _ = _backends.cuda._build()
    assert _backends.cuda.unsupported(architectures, toolkit, toolkit, (9, 0)) == ""


def test_a_launch_that_fails_says_why(cuda_kernels):
    first = torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(RuntimeError, match=r"kernel compact was not launched: error 1, \w+"):
        cuda_kernels.compact[(1, 1)](*[first] * 7, 0, 1, 0, INTS=99, WORDS=1, PAD=1, BLOCK=32)


def test_refusals():
    weight = torch.zeros(2, 3, 1, 1)
    x = torch.zeros(1, 3, 4, 4)
    conv = Call("partial_conv2d", (Source(x, None),), [weight], [], None, centred(1, [129, 1]))
    assert "strides of at most 128, stride is [129, 1]" in _backends.cuda.refusal(conv)
    assert _backends.cuda.refusal(conv._replace(geometry=centred(1, [1, 1]))) == ""
    many = conv._replace(weights=[weight] * 32, scales=torch.zeros(32, 2), geometry=centred(1, [1, 1]))
    assert "at most 31 kernels, weights has 32" in _backends.cuda.refusal(many)
